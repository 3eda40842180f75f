use super::*;

fn prefix(s: &str) -> Result<Prefix, String> {
    Prefix::try_from(s.to_owned())
}

#[test]
fn prefixes_are_checked_and_contain() {
    for wrong in [
        "10.0.0.2",
        "10.0.0.2/33",
        "fd00::2/129",
        "10.0.0/24",
        "0.0.0.0/0",
        "224.0.0.1/4",
        "/24",
        "a/b",
    ] {
        prefix(wrong).expect_err(wrong);
    }
    let v4 = prefix("10.1.2.3/23").expect("valid");
    let inside = |ip: &str| v4.contains(ip.parse().expect("address"));
    assert!(inside("10.1.3.255") && !inside("10.1.4.1") && !inside("::1"));
    assert!(prefix("10.0.0.1/0").expect("valid").contains("9.9.9.9".parse().expect("address")));
    assert!(!prefix("fd00::2/128").expect("valid").contains("fd00::3".parse().expect("address")));
    assert_eq!(v4.to_string(), "10.1.2.3/23");
}

#[test]
fn links_of_the_host_have_names_that_fit_and_differ() {
    assert_eq!(host_link("web"), "nk-web");
    assert_eq!(host_link("exactly-12ch"), "nk-exactly-12ch");
    let (a, b) = (host_link("a-guest-with-a-long-name-1"), host_link("a-guest-with-a-long-name-2"));
    assert!(a.len() <= LINK_NAME_MAX && a != b && a.starts_with("nk-a-gue"), "{a} {b}");
}

#[test]
fn an_ordinary_user_is_told_the_addresses_of_its_own_namespace() {
    let told = in_thread(|| {
        crate::sys::set_capabilities(0)?;
        addresses(&File::open("/proc/thread-self/ns/net")?.into())
    });
    let there = Netlink::here().and_then(|mut n| n.addresses()).expect("asked").len();
    assert_eq!(told.expect("without any right").len(), there);
}
