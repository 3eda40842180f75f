use super::*;
use crate::limits::GuestLimits;

fn read(text: &str) -> Result<Config, String> {
    let mut p = std::env::temp_dir();
    p.push(format!("nk-config-{}-{:p}", std::process::id(), &raw const text));
    std::fs::write(&p, text).expect("write");
    let r = Config::read(&p).map_err(|e| e.to_string());
    std::fs::remove_file(&p).expect("remove");
    r
}

#[test]
fn the_example_above_is_accepted() {
    let text: String = include_str!("../config.rs")
        .lines()
        .skip_while(|l| *l != "//! ```toml")
        .skip(1)
        .take_while(|l| *l != "//! ```")
        .map(|l| format!("{}\n", l.trim_start_matches("//!")))
        .collect();
    // What is named must be there, and this is.
    let text = text.replace("br0", "lo");
    let c = read(&text).expect("valid");
    let nsms = c.nsms();
    let [(kernel, first), (web, second)] = &nsms[..] else { panic!("{nsms:?}") };
    assert_eq!(
        (kernel.as_str(), first.placement, first.default),
        ("kernel", Placement::Inline, true)
    );
    assert_eq!((web.as_str(), second.placement, second.io), ("web", Placement::Process, Io::Auto));
    assert_eq!(second.core_numbers(), [0]);
    assert_eq!(
        c.guest("web").nsm.map(|n| n.into_inner().names().to_vec()),
        Some(vec!["web".to_owned()])
    );
    assert_eq!(c.guest("web").limits(1000).port_min, 1024);
    assert_eq!(c.guest("web").namespace, Some(NamespaceName::Named("blue".into())));
    assert_eq!((c.guest("web").limits(0).out, c.guest("web").limits(0).weight), (62_500_000, 2));
    assert_eq!(c.guest("other").limits(0), GuestLimits::default());
    let web = c.guest("web");
    assert!(web.admits(1000, &[1]) && web.admits(7, &[3, 100]) && !web.admits(7, &[1]));
    assert!(!c.guest("other").admits(1, &[1]));
    let rules = web.listen().expect("rules");
    assert_eq!(rules.iter().map(|l| l.ports.clone()).collect::<Vec<_>>(), [80..=80, 1024..=65535]);
    assert_eq!(c.socket_mode, Some(Mode(0o660)));
}

#[test]
fn one_nsm_may_be_placed_from_outside_and_is_there_without_being_named() {
    let mut c = Config::default();
    c.place(Placement::Process).expect("one");
    assert_eq!(c.nsms().first().map(|n| n.1.placement), Some(Placement::Process));
    let mut c = read("[nsm.kernel]\nplacement = \"process\"\n[nsm.b]\n").expect("valid");
    c.place(Placement::Inline).expect_err("two");
}

#[test]
fn mistakes_are_named_with_line_and_key() {
    let e = read("socket = \"/x\"\n\n[guest.web]\nsockets = 3\n").expect_err("unknown key");
    assert!(e.contains("line 4") && e.contains("sockets"), "{e}");
    let e = read("namespace = \"netns:\"\n").expect_err("bad value");
    assert!(e.contains("line 1") && e.contains("netns"), "{e}");
    let e = read("\n[guest.a]\nnsm = \"own\"\n").expect_err("no such NSM");
    assert!(e.contains("line 3") && e.contains("\"own\""), "{e}");
    let e =
        read("[nsm.a]\nplacement = \"process\"\ncores = [\n0, 99999]\n").expect_err("no such CPU");
    assert!(e.contains("line 4") && e.contains("99999"), "{e}");
    let e = read("[nsm.a]\n[nsm.b]\n").expect_err("two inline");
    assert!(e.contains("nsm.b") && e.contains("inline"), "{e}");
    let e = read("[nsm.a]\nstack = \"own\"\n").expect_err("no such stack");
    assert!(e.contains("line 2"), "{e}");
    let e = read("[nsm.kernel]\nio = \"uring\"\n").expect_err("no such io");
    assert!(e.contains("line 2") && e.contains("io_uring"), "{e}");
    let e = read("[guest.a]\nprocesses_max = 0\n").expect_err("range");
    assert!(e.contains("line 2") && e.contains("processes_max: at least 1"), "{e}");
    for (wrong, why) in [
        ("socket_mode = \"rw\"", "octal"),
        ("socket_group = \"no such group\"", "no group"),
        ("[guest.a]\nlisten = [\"10.0.0.2\"]", "ADDRESS:PORT"),
        ("[guest.a]\nlisten = [\"::1:80\"]", "brackets"),
        ("[guest.a]\nlisten = [\"10.0.0.2:90-80\"]", "PORT-PORT"),
        ("[guest.a]\nuid = \"root\"", "a list of numbers"),
        ("[guest.a]\nlisten = \"10.0.0.2:80\"", "a list: [...]"),
        ("[guest.a]\nport_min = 70000", "up to 65535"),
        ("[guest.a]\nnames = 0", "true or false"),
        ("[guest.a]\nout = 5", "in quotes"),
        ("[guest.\"a b\"]", "letters, digits"),
    ] {
        let e = read(wrong).expect_err(wrong);
        assert!(e.contains(why), "{e}");
    }
    let e = read("[guest.a]\nweight = 65\n").expect_err("range");
    assert!(e.contains("line 2") && e.contains("weight: 1 to 64"), "{e}");
    let e = read("[guest.a]\n\nout = \"5 Mbps\"\n").expect_err("unit");
    assert!(e.contains("line 3") && e.contains("Mbit/s"), "{e}");
}

#[test]
fn networks_that_cannot_be_had_are_named_with_their_line() {
    let c = read(
        "[guest.a.net]\nlink = \"veth\"\naddresses = [\"10.0.0.2/24\"]\ngateway = \"10.0.0.1\"\n",
    )
    .expect("valid");
    let a = c.guest("a");
    assert_eq!(a.made_namespace("a"), Some("a"));
    assert_eq!(a.net.map(|n| n.into_inner().gateways().len()), Some(1));
    for (line, text, why) in [
        (3, "link = \"veth\"\nbridge = \"no-such-link\"", "no link \"no-such-link\""),
        (2, "link = \"macvlan\"", "needs the host's link"),
        (3, "link = \"macvlan\"\nparent = \"no-such-link\"", "no link \"no-such-link\""),
        (3, "link = \"veth\"\nparent = \"lo\"", "only of link = \"macvlan\""),
        (2, "bridge = \"lo\"", "only of link = \"veth\""),
        (2, "link = \"ipvlan\"", "ipvlan"),
        (2, "addresses = [\"10.0.0.2/24\"]", "no link that could have them"),
        (3, "link = \"veth\"\naddresses = [\"10.0.0.2\"]", "no address with a prefix"),
        (3, "link = \"veth\"\naddresses = [\"10.0.0.2/33\"]", "no address with a prefix"),
        (3, "link = \"veth\"\naddresses = [\"10.0.0.2/24\",\"10.0.0.2/16\"]", "given twice"),
        (
            4,
            "link = \"veth\"\naddresses = [\"10.0.0.2/24\"]\ngateway = \"10.0.1.1\"",
            "subnet of none",
        ),
        (4, "link = \"veth\"\nbridge = \"lo\"\nhost_addresses = [\"10.0.0.1/24\"]", "in no bridge"),
        (2, "mtu = 3", "mtu"),
    ] {
        let e = read(&format!("[guest.a.net]\n{text}\n")).expect_err(text);
        assert!(e.contains(&format!("line {line}:")) && e.contains(why), "{text}: {e}");
    }
    let e = read("[guest.a]\nnamespace = \"host\"\n[guest.a.net]\n").expect_err("no name");
    assert!(e.contains("line 3") && e.contains("netns:NAME"), "{e}");
    let e = read("[guest.a.net]\n[guest.b]\nnamespace = \"netns:a\"\n[guest.b.net]\n")
        .expect_err("twice");
    assert!(e.contains("line 4") && e.contains("guest.a already"), "{e}");
    let one =
        |g: &str| format!("[guest.{g}.net]\nlink = \"veth\"\naddresses = [\"10.0.0.2/24\"]\n");
    let e = read(&format!("{}{}", one("a"), one("b"))).expect_err("twice");
    assert!(
        e.contains("line 6")
            && e.contains("10.0.0.2 is given twice, first in guest.a.net.addresses"),
        "{e}"
    );
}
