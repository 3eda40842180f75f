//! What the facts mean for guests.

use super::facts::{Facts, Limit, Trial};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// As it should be.
    Good,
    /// Guests run, and something is slower, smaller or not there.
    Costs,
    /// No guest runs.
    Stops,
}

impl State {
    pub(super) fn word(self) -> &'static str {
        match self {
            State::Good => "good",
            State::Costs => "costs",
            State::Stops => "stops",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) what: &'static str,
    pub(super) state: State,
    pub(super) found: String,
    /// What the lack costs and what can be done; none where nothing lacks.
    pub(super) cost: Option<String>,
}

const KERNEL_MIN: (u32, u32) = (5, 11);
const GLIBC_MIN: (u32, u32) = (2, 17);
/// Descriptors below which a daemon serves few sockets: each is one in the daemon.
const NOFILE_WANTED: u64 = 32_768;
const NOFILE_MIN: u64 = 256;
/// What one guest's chunks and cells may take when it uses them all.
const GUEST_BYTES: u64 = 320 << 20;
const PIDS_WANTED: u64 = 256;

fn good(what: &'static str, found: impl Into<String>) -> Finding {
    Finding { what, state: State::Good, found: found.into(), cost: None }
}

fn lack(what: &'static str, state: State, found: impl Into<String>, cost: &str) -> Finding {
    Finding { what, state, found: found.into(), cost: Some(cost.to_owned()) }
}

/// All findings, what stops guests first.
pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut all = vec![
        architecture(facts),
        kernel(facts),
        glibc(facts),
        guestlib(facts),
        needed(
            "sealed memory",
            &facts.sealed_memfd,
            "a guest's device is a sealed memfd; sysctl vm.memfd_noexec=2 and some filters refuse it",
        ),
        needed("eventfd", &facts.eventfd, "doorbells are eventfds"),
        needed("pidfd", &facts.pidfd, "the daemon learns of a process's end by its pidfd"),
        needed(
            "seccomp filters",
            &facts.seccomp,
            "without its filter a guest could open sockets of the host past GuestLib",
        ),
        namespaces(facts),
        link("veth links", &facts.veth),
        link("macvlan links", &facts.macvlan),
        descriptors(facts),
        memory(facts),
        processes(facts),
        cpus(facts),
        hugepages(facts),
        io_uring(facts),
        vms(facts),
    ];
    all.sort_by_key(|f| match f.state {
        State::Stops => 0,
        State::Costs => 1,
        State::Good => 2,
    });
    all
}

fn needed(what: &'static str, trial: &Trial, cost: &str) -> Finding {
    match trial {
        Ok(()) => good(what, "works"),
        Err(why) => lack(what, State::Stops, why, cost),
    }
}

fn architecture(facts: &Facts) -> Finding {
    let what = "architecture";
    if facts.architecture == "x86_64" {
        return good(what, "x86_64");
    }
    lack(what, State::Stops, &facts.architecture, "process guests need x86-64")
}

/// The first two numbers of a version.
pub(super) fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn kernel(facts: &Facts) -> Finding {
    let (what, min) = ("kernel", format!("{}.{} is needed", KERNEL_MIN.0, KERNEL_MIN.1));
    match version(&facts.kernel) {
        Some(v) if v >= KERNEL_MIN => good(what, format!("Linux {}", facts.kernel)),
        _ => lack(what, State::Stops, format!("Linux {}", facts.kernel), &min),
    }
}

fn glibc(facts: &Facts) -> Finding {
    let what = "C library";
    let min = format!(
        "GuestLib needs glibc {}.{}; a container needs one of its own that is as new",
        GLIBC_MIN.0, GLIBC_MIN.1
    );
    match version(&facts.glibc) {
        Some(v) if v >= GLIBC_MIN => good(what, format!("glibc {}", facts.glibc)),
        _ => lack(what, State::Stops, format!("{:?}", facts.glibc), &min),
    }
}

fn guestlib(facts: &Facts) -> Finding {
    match &facts.guestlib {
        Ok(path) => good("GuestLib", format!("{path} loads")),
        Err(why) => lack("GuestLib", State::Stops, why, "nothing can be redirected without it"),
    }
}

fn namespaces(facts: &Facts) -> Finding {
    let what = "network namespaces";
    match &facts.namespace {
        Ok(()) if facts.root => good(what, "can be made"),
        Ok(()) => good(what, "can be made through a user namespace"),
        Err(why) => lack(
            what,
            State::Costs,
            why,
            "`nk run` needs --share-net, or root: a guest is then kept off the host's network by the filter alone. For others: sysctl \
             user.max_user_namespaces, kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns",
        ),
    }
}

fn link(what: &'static str, trial: &Trial) -> Finding {
    match trial {
        Ok(()) => good(what, "can be made"),
        Err(why) => lack(
            what,
            State::Costs,
            why,
            "no network with this link can be made for a guest ([guest.NAME.net]): the kernel lacks it (modprobe veth macvlan), or no \
             namespace can be made; namespaces that are there can still be named",
        ),
    }
}

fn descriptors(facts: &Facts) -> Finding {
    let what = "descriptors";
    let found = format!("{} of a process at most", facts.nofile_hard);
    match facts.nofile_hard {
        Limit(Some(n)) if n < NOFILE_MIN => lack(
            what,
            State::Stops,
            found,
            "a daemon needs some for each guest and one for each socket: raise the hard limit (ulimit -Hn, LimitNOFILE=)",
        ),
        Limit(Some(n)) if n < NOFILE_WANTED => lack(
            what,
            State::Costs,
            found,
            "each socket of a guest is one of the daemon's: more get EMFILE. Raise the hard limit (ulimit -Hn, LimitNOFILE=)",
        ),
        _ => good(what, found),
    }
}

fn memory(facts: &Facts) -> Finding {
    let what = "memory";
    let least =
        facts.memory_max.0.map_or(facts.memory_available, |m| m.min(facts.memory_available));
    let found = match facts.memory_max {
        Limit(Some(m)) => format!("{} MiB, by the control group", m >> 20),
        Limit(None) => format!("{} MiB available", facts.memory_available >> 20),
    };
    if least >= GUEST_BYTES {
        return good(what, found);
    }
    lack(
        what,
        State::Costs,
        found,
        "a guest that uses all of its chunks and sockets takes 300 MiB, and whoever touches memory that is not there is killed",
    )
}

fn processes(facts: &Facts) -> Finding {
    let (what, found) = ("processes", format!("{} in the control group", facts.pids_max));
    match facts.pids_max {
        Limit(Some(n)) if n < PIDS_WANTED => lack(
            what,
            State::Costs,
            found,
            "daemon and keeper count beside the guests' own (pids.max)",
        ),
        _ => good(what, found),
    }
}

fn cpus(facts: &Facts) -> Finding {
    match facts.cpus {
        1 => lack(
            "CPUs",
            State::Costs,
            "1",
            "program and daemon take turns: a round trip costs two switches more than native",
        ),
        n => good("CPUs", n.to_string()),
    }
}

fn hugepages(facts: &Facts) -> Finding {
    let what = "huge pages";
    let shmem = facts.shmem_huge.as_deref();
    if matches!(shmem, Some("always" | "within_size" | "force")) {
        return good(what, format!("for shared memory: {}", shmem.unwrap_or_default()));
    }
    lack(
        what,
        State::Costs,
        format!("for shared memory: {}", shmem.unwrap_or("not in this kernel")),
        "guests' devices lie in 4 KiB pages, with more TLB misses where many sockets are busy \
         (/sys/kernel/mm/transparent_hugepage/shmem_enabled)",
    )
}

fn io_uring(facts: &Facts) -> Finding {
    match &facts.io_uring {
        Ok(()) => good("io_uring", "works"),
        Err(why) => lack(
            "io_uring",
            State::Costs,
            why,
            "the kernel-stack NSM works with epoll alone: needed are Linux 5.18, 8 KiB of locked memory for each NSM (ulimit -l, \
             LimitMEMLOCK=) where root does not start it, and neither sysctl kernel.io_uring_disabled nor a filter against it",
        ),
    }
}

fn vms(facts: &Facts) -> Finding {
    let what = "VM guests";
    match (&facts.qemu, &facts.kvm) {
        (Some(qemu), Ok(())) => good(what, format!("{qemu} and /dev/kvm")),
        (None, _) => lack(
            what,
            State::Costs,
            "no qemu-system-x86_64",
            "no VM guests; process guests need none (Debian: qemu-system-x86, with ivshmem-doorbell)",
        ),
        (Some(qemu), Err(why)) => lack(
            what,
            State::Costs,
            format!("{qemu}; /dev/kvm: {why}"),
            "VM guests are emulated, tens of times slower",
        ),
    }
}

#[cfg(test)]
mod tests;
