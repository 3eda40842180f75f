//! Shells and what they start: pipelines, environments, exit statuses, signals.

use std::time::Duration;

use anyhow::{Result, ensure};
use rustix::process::Signal;

use crate::nginx::Nginx;
use crate::process::Ended;
use crate::suite::{ALL_MODES, GUESTS_ONLY, Group, Test};
use crate::world::{Mode, Side, World};

const LIMIT: Duration = Duration::from_secs(40);
const BODY: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcde";

pub(super) fn tests() -> Vec<Test> {
    let test = |name, modes, native, body| Test {
        name,
        group: Group::Programs,
        modes,
        private: false,
        alone: false,
        native,
        body,
    };
    vec![
        test("sh -c curl, pipelines, env -i", ALL_MODES, true, scripts),
        test("exit statuses and signals", GUESTS_ONLY, true, statuses),
        Test {
            private: true,
            ..test("nginx as a daemon, no nk daemon", GUESTS_ONLY, true, private_nginx)
        },
    ]
}

fn shell(world: &World, side: Side, script: &str) -> Result<Ended> {
    world.start("sh", side, &["/bin/sh", "-c", script])?.finish(LIMIT)
}

fn scripts(world: &mut World, mode: Mode) -> Result<String> {
    let nginx = Nginx::start(world, mode.server)?;
    let url = nginx.url();
    let curl = format!("/usr/bin/curl -sS --fail -m 20 {url}");
    let bodies = |count: usize| format!("{BODY}\n").repeat(count);
    let cases: Vec<(String, String)> = vec![
        (curl.clone(), bodies(1)),
        (format!("{curl}; {curl}"), bodies(2)),
        (format!("({curl}) && {curl} | cat"), bodies(2)),
        (format!("{curl} | tr a-f A-F | cut -c1-16"), "0123456789ABCDEF\n".into()),
        (format!("x=$({curl}); echo \"$x\""), bodies(1)),
        (format!("env -i {curl}"), bodies(1)),
        (format!("env -u LD_PRELOAD {curl}"), bodies(1)),
        (format!("exec env -i /bin/sh -c '{curl}'"), bodies(1)),
        (format!("for i in 1 2 3 4 5 6 7 8; do {curl} & done; wait"), bodies(8)),
        (
            format!(
                "echo {url} {url} {url} {url} | xargs -n 1 -P 4 /usr/bin/curl -sS --fail -m 20"
            ),
            bodies(4),
        ),
        (format!("nohup setsid /bin/sh -c '{curl}' 2>/dev/null | cat"), bodies(1)),
        (format!("timeout 10 {curl}"), bodies(1)),
        // A socket on the shell's own standard output, through the C library's streams.
        (
            format!(
                "timeout 10 /bin/bash -c 'exec 3<>/dev/tcp/127.0.0.1/{}; \
                 echo -en \"GET / HTTP/1.0\\r\\n\\r\\n\" >&3; tail -n 1 <&3'",
                nginx.port
            ),
            bodies(1),
        ),
        (format!("/usr/bin/python3 -c 'import os; os.system(\"{curl}\")'"), bodies(1)),
        (
            format!(
                "/usr/bin/python3 -c 'import subprocess as s; \
                 print(s.run(\"{curl}\".split(), capture_output=True, close_fds=True).stdout.decode(), end=\"\")'"
            ),
            bodies(1),
        ),
        (
            format!(
                "/usr/bin/python3 -c 'import os; print(os.popen(\"{curl}\").read(), end=\"\")'"
            ),
            bodies(1),
        ),
        (format!("perl -e 'print `{curl}`'"), bodies(1)),
    ];
    let count = cases.len();
    for (script, expected) in cases {
        let ended = shell(world, mode.client, &script)?;
        ensure!(
            ended.status.success() && ended.out == expected,
            "{script}\n{} {} {}",
            ended.how(),
            ended.out,
            ended.err
        );
    }
    nginx.stop()?;
    Ok(format!("{count} scripts"))
}

fn statuses(world: &mut World, mode: Mode) -> Result<String> {
    for (script, how) in [
        ("exit 7", "status 7"),
        ("/bin/false", "status 1"),
        ("no-such-program", "status 127"),
        ("kill -TERM $$", "signal 15"),
        ("kill -KILL $$", "signal 9"),
        ("ulimit -c 0; kill -SEGV $$", "signal 11"),
        ("trap 'exit 3' TERM; kill -TERM $$; sleep 1", "status 3"),
    ] {
        let ended = shell(world, mode.client, script)?;
        ensure!(ended.how() == how, "{script}: {} and not {how}: {}", ended.how(), ended.err);
    }
    // In place: the pid is the command's own.
    let running = world.start("sh", mode.client, &["/bin/sh", "-c", "echo $$; sleep 30"])?;
    crate::process::eventually(Duration::from_secs(10), || {
        ensure!(
            running.out().trim() == running.pid().to_string(),
            "pid {} says {}",
            running.pid(),
            running.out()
        );
        Ok(())
    })?;
    let ended = running.stop(Signal::TERM, Duration::from_secs(5))?;
    ensure!(ended.how() == "signal 15", "a signal to the guest: {}", ended.how());
    Ok(String::new())
}

/// With no daemon, `nk run` starts one that lives until the guest's last process is gone; nginx daemonises.
fn private_nginx(world: &mut World, mode: Mode) -> Result<String> {
    let nginx = Nginx::start(world, Side::Plain)?;
    let config = nginx.config().to_owned();
    nginx.stop()?;
    let (port, pid_file) = (nginx_port(&config)?, config.replace("nginx.conf", "pid"));
    let start = world.start("nginx", mode.server, &["/usr/sbin/nginx", "-c", &config])?;
    // finish_alone: the daemonised server has left the group's leader behind and must live on.
    let started = start.finish_alone(LIMIT)?;
    ensure!(started.status.success(), "nginx: {} {}", started.how(), started.err);
    let pid: u32 = crate::process::eventually(Duration::from_secs(10), || {
        Ok(std::fs::read_to_string(&pid_file)?.trim().parse()?)
    })?;
    let check = (|| {
        let url = format!("http://127.0.0.1:{port}/");
        for _ in 0..5 {
            let ended =
                shell(world, mode.client, &format!("/usr/bin/curl -sS --fail -m 20 {url}"))?;
            ensure!(ended.out.trim() == BODY, "{} {} {}", ended.how(), ended.out, ended.err);
        }
        if world.options.nk.is_some() {
            crate::isolation::check_busy(pid, &world.nk_pids()?)?;
        }
        Ok(())
    })();
    crate::process::signal_pid(pid, Signal::TERM);
    let gone = crate::process::eventually(Duration::from_secs(10), || {
        ensure!(crate::procfs::is_gone(pid), "nginx {pid} does not end");
        Ok(())
    });
    if gone.is_err() {
        crate::process::signal_pid(pid, Signal::KILL);
    }
    check.and(gone)?;
    Ok(String::new())
}

fn nginx_port(config: &str) -> Result<u16> {
    let text = std::fs::read_to_string(config)?;
    let line = text.lines().find_map(|line| line.trim().strip_prefix("listen 127.0.0.1:"));
    let port = line.map(|rest| rest.trim_end_matches([';', ' ']));
    Ok(port.unwrap_or_default().parse()?)
}
