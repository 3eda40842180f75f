//! Who may run which guest, who may reach the daemon, and where a guest may listen.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{describe, guests_only, number};
use crate::suite::Test;
use crate::world::{Mode, World, free_ports};

const PYTHON: &str = "/usr/bin/python3";
const LIMIT: Duration = Duration::from_secs(20);

pub(super) fn tests() -> Vec<Test> {
    guests_only(&[
        ("ownership: users, groups and the socket's permissions", users),
        ("ownership: where a guest may listen", listen),
        ("ownership: a port of another guest", ports),
    ])
}

/// `nk run` by a user with a group and a supplementary one.
fn run_as(
    world: &World,
    uid: u32,
    gid: u32,
    more: u32,
    guest: &str,
) -> Result<std::process::Output> {
    let ids = [
        "/usr/bin/setpriv".to_owned(),
        format!("--reuid={uid}"),
        format!("--regid={gid}"),
        format!("--groups={more}"),
        "--".to_owned(),
    ];
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let socket = world.daemon().context("no daemon")?.socket.display().to_string();
    let mut command = std::process::Command::new(ids.first().context("no command")?);
    command.args(ids.iter().skip(1)).arg(world.nk()?);
    command.args(["run", "--engine", &socket, "--name", guest, "--", "/bin/true"]);
    command.current_dir("/").output().context("nk run")
}

fn users(world: &mut World, _: Mode) -> Result<String> {
    fs::set_permissions(&world.dir, fs::Permissions::from_mode(0o755))?;
    world.restart_with(
        "[guest.mine]\nuid = [65533, 65534]\n[guest.ours]\ngid = 65532\n[guest.nobodys]\nweight = 1\n",
    )?;
    // The file's own user, that a program of his needs, is not asked for: nk itself must be reachable.
    for (uid, gid, more, guest, may) in [
        (65534, 65534, 65534, "mine", true),
        (65532, 65532, 65532, "mine", false),
        (65534, 65532, 65534, "ours", true),
        (65534, 65534, 65532, "ours", true),
        (65534, 65534, 65534, "ours", false),
        (65534, 65534, 65534, "nobodys", false),
        (65534, 65534, 65534, "unnamed", true),
        (0, 0, 0, "nobodys", true),
        (0, 0, 0, "mine", true),
    ] {
        let output = run_as(world, uid, gid, more, guest)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let what = format!("uid {uid}, gid {gid} and {more}, guest {guest}");
        ensure!(output.status.success() == may, "{what}: {:?}: {said}", output.status.code());
        ensure!(may || said.contains("does not give the guest"), "{what}: {said}");
    }
    // The socket itself: the configuration's group may connect, others may not.
    let socket = world.daemon().context("no daemon")?.socket.clone();
    ensure!(fs::metadata(&socket)?.mode() & 0o777 == 0o666, "the default");
    world.options.config_head = "socket_mode = \"0660\"\nsocket_group = \"65532\"\n".to_owned();
    world.restart_with("")?;
    let meta = fs::metadata(&socket)?;
    ensure!(
        (meta.mode() & 0o777, meta.gid()) == (0o660, 65532),
        "{:o} {}",
        meta.mode(),
        meta.gid()
    );
    for (gid, may) in [(65532, true), (65533, false)] {
        let output = run_as(world, 65534, gid, gid, "unnamed")?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success() == may, "gid {gid}: {:?}: {said}", output.status.code());
    }
    Ok("9 callers, 2 connectors".to_owned())
}

/// Tries to bind and to listen at each place, and says what came of it.
const PLACES: &str = "import errno, socket, sys
for place in sys.argv[1:]:
    kind, ip, port = place.split(',')
    family = socket.AF_INET6 if ':' in ip else socket.AF_INET
    s = socket.socket(family, socket.SOCK_DGRAM if kind == 'udp' else socket.SOCK_STREAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        if port != 'none':
            s.bind((ip, int(port)))
        if kind == 'tcp':
            s.listen()
        print('yes', flush=True)
    except OSError as e:
        print(errno.errorcode[e.errno], flush=True)
    if kind == 'hold':
        s.listen()
        sys.stdin.read()
";

pub(super) fn places(world: &World, guest: &str, places: &[String]) -> Result<Vec<String>> {
    let file = world.write("places.py", PLACES)?;
    let mut words = vec![PYTHON.to_owned(), file];
    words.extend_from_slice(places);
    let said = world.start_as(guest, &words)?.ok(LIMIT)?;
    Ok(said.lines().map(str::to_owned).collect())
}

fn listen(world: &mut World, _: Mode) -> Result<String> {
    let first = free_ports(3)?;
    let (second, third) = (first + 1, first + 2);
    world.restart_with(&format!(
        "[guest.web]\nlisten = [\"127.0.0.1:{first}\", \"0.0.0.0:{second}-{second}\"]\n[guest.free]\n"
    ))?;
    let asked = [
        (format!("tcp,127.0.0.1,{first}"), "yes"),
        (format!("tcp,0.0.0.0,{first}"), "EACCES"),
        (format!("tcp,127.0.0.2,{first}"), "EACCES"),
        (format!("tcp,0.0.0.0,{second}"), "yes"),
        (format!("tcp,127.0.0.2,{second}"), "yes"),
        (format!("tcp,::,{second}"), "EACCES"),
        (format!("tcp,127.0.0.1,{third}"), "EACCES"),
        (format!("udp,127.0.0.1,{third}"), "EACCES"),
        (format!("udp,127.0.0.1,{first}"), "yes"),
        ("udp,127.0.0.1,0".to_owned(), "yes"),
        ("tcp,127.0.0.1,0".to_owned(), "EACCES"),
        ("tcp,127.0.0.1,none".to_owned(), "EACCES"),
    ];
    let words: Vec<String> = asked.iter().map(|a| a.0.clone()).collect();
    let said = places(world, "web", &words)?;
    for ((place, wanted), got) in asked.iter().zip(&said) {
        ensure!(got == wanted, "{place}: {got}, not {wanted}");
    }
    ensure!(said.len() == asked.len(), "{said:?}");
    let all = places(world, "free", &words)?;
    ensure!(all.iter().all(|got| got == "yes"), "without a policy: {all:?}");
    Ok(format!("{} places", asked.len()))
}

/// Two guests in one namespace: SO_REUSEPORT and SO_REUSEADDR hold within one of them only.
fn ports(world: &mut World, _: Mode) -> Result<String> {
    let port = free_ports(1)?;
    world.restart_with("[guest.one]\n[guest.two]\n")?;
    let file = world.write("places.py", PLACES)?;
    let place = format!("hold,127.0.0.1,{port}");
    let words = world.prefix_named(crate::world::Side::Guest, Some("one"))?;
    let words: Vec<String> = [words, vec![PYTHON.to_owned(), file, place]].concat();
    let mut holder = world.start_piped("holder", crate::world::Side::Plain, &words)?;
    let input = holder.input();
    crate::cases::says(&mut holder, "yes", 1)?;
    let tried =
        [format!("tcp,127.0.0.1,{port}"), format!("tcp,0.0.0.0,{port}"), format!("tcp,::,{port}")];
    let said = places(world, "two", &tried)?;
    ensure!(said == ["EADDRINUSE"; 3], "another guest: {said:?}");
    let refused = number(&describe(world, "one")?, "/engine/ports_refused")?;
    ensure!(refused == 0, "the holder was refused {refused} times");
    drop(input);
    holder.ok(LIMIT)?;
    let said = places(world, "two", &tried[..1])?;
    ensure!(said == ["yes"], "when it is free: {said:?}");
    Ok("3 refused".to_owned())
}
