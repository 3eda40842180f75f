use super::*;

fn fine() -> Facts {
    Facts {
        architecture: "x86_64".into(),
        kernel: "6.1.0-28-amd64".into(),
        glibc: "2.36".into(),
        guestlib: Ok("/usr/lib/libnetkernel.so".into()),
        sealed_memfd: Ok(()),
        eventfd: Ok(()),
        pidfd: Ok(()),
        seccomp: Ok(()),
        root: false,
        namespace: Ok(()),
        veth: Ok(()),
        macvlan: Ok(()),
        nofile_hard: Limit(Some(1 << 20)),
        memory_available: 8 << 30,
        memory_max: Limit(None),
        pids_max: Limit(None),
        cpus: 4,
        shmem_huge: Some("within_size".into()),
        io_uring: Ok(()),
        qemu: Some("/usr/bin/qemu-system-x86_64".into()),
        kvm: Ok(()),
    }
}

/// What differs from the machine that lacks nothing.
fn lacks(change: impl FnOnce(&mut Facts)) -> Vec<(&'static str, State)> {
    let mut facts = fine();
    change(&mut facts);
    let bad = judge(&facts).into_iter().filter(|f| f.state != State::Good);
    bad.map(|f| {
        assert!(f.cost.is_some() && !f.found.is_empty(), "{f:?}");
        (f.what, f.state)
    })
    .collect()
}

#[test]
fn a_machine_that_lacks_nothing() {
    assert_eq!(lacks(|_| ()), []);
    assert!(judge(&fine()).iter().all(|f| f.cost.is_none()));
}

#[test]
fn what_stops_guests() {
    let stops = |what| vec![(what, State::Stops)];
    let no = || Err("no such call".to_owned());
    assert_eq!(lacks(|f| f.architecture = "aarch64".into()), stops("architecture"));
    assert_eq!(lacks(|f| f.kernel = "5.10.0-33-amd64".into()), stops("kernel"));
    assert_eq!(lacks(|f| f.kernel = "what".into()), stops("kernel"));
    assert_eq!(lacks(|f| f.glibc = "2.12".into()), stops("C library"));
    assert_eq!(lacks(|f| f.guestlib = no()), stops("GuestLib"));
    assert_eq!(lacks(|f| f.sealed_memfd = Err("EACCES".into())), stops("sealed memory"));
    assert_eq!(lacks(|f| f.eventfd = Err("ENOSYS".into())), stops("eventfd"));
    assert_eq!(lacks(|f| f.pidfd = Err("ENOSYS".into())), stops("pidfd"));
    assert_eq!(lacks(|f| f.seccomp = Err("no filters".into())), stops("seccomp filters"));
    assert_eq!(lacks(|f| f.nofile_hard = Limit(Some(64))), stops("descriptors"));
}

#[test]
fn what_only_costs() {
    let costs = |what| vec![(what, State::Costs)];
    assert_eq!(lacks(|f| f.namespace = Err("EPERM".into())), costs("network namespaces"));
    assert_eq!(lacks(|f| f.nofile_hard = Limit(Some(4096))), costs("descriptors"));
    assert_eq!(lacks(|f| f.memory_available = 64 << 20), costs("memory"));
    assert_eq!(lacks(|f| f.memory_max = Limit(Some(64 << 20))), costs("memory"));
    assert_eq!(lacks(|f| f.pids_max = Limit(Some(20))), costs("processes"));
    assert_eq!(lacks(|f| f.cpus = 1), costs("CPUs"));
    assert_eq!(lacks(|f| f.shmem_huge = Some("never".into())), costs("huge pages"));
    assert_eq!(lacks(|f| f.io_uring = Err("EPERM".into())), costs("io_uring"));
    assert_eq!(lacks(|f| f.qemu = None), costs("VM guests"));
    assert_eq!(lacks(|f| f.kvm = Err("no such file".into())), costs("VM guests"));
}

#[test]
fn what_stops_comes_first() {
    let found = lacks(|f| {
        f.cpus = 1;
        f.kernel = "4.19".into();
        f.io_uring = Err("EPERM".into());
    });
    let states: Vec<State> = found.into_iter().map(|(_, state)| state).collect();
    assert_eq!(states, [State::Stops, State::Costs, State::Costs]);
}

#[test]
fn versions() {
    assert_eq!(version("6.18.44-fc"), Some((6, 18)));
    assert_eq!(version("5.11"), Some((5, 11)));
    assert!(version("5.9") < version("5.11"));
    assert_eq!(version("six"), None);
}
