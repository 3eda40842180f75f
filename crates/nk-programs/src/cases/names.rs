//! Names: a network namespace with a name server, hosts and servers of its own; what looks names up is a guest whose sockets are
//! there, and what it finds is compared with the same program in that namespace.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use crate::process::{self, Running, eventually, signal_pid};
use crate::suite::{Body, Group, Test};
use crate::world::{Mode, NAMELESS, Side, World};

const LIMIT: Duration = Duration::from_secs(60);
/// netdb.h: the answer is no, for good.
const EAI_FAIL: i32 = -4;
const DNS: &str = "192.0.2.53";
const HTTP: &str = "8080";
const TLS: &str = "8443";

pub(super) fn tests() -> Vec<Test> {
    let tests: [(&'static str, Body, bool); 5] = [
        ("names of a name server", programs, false),
        ("names with a private daemon", programs, true),
        ("names over TLS", tls, false),
        ("resolvers that are killed, busy or idle", resolvers, false),
        ("a guest without names", nameless, false),
    ];
    tests
        .map(|(name, body, private)| Test {
            name,
            group: Group::Programs,
            modes: &[Mode::GUEST_CLIENT],
            private,
            alone: false,
            native: true,
            body,
        })
        .to_vec()
}

/// A namespace with addresses on its loopback, dnsmasq, and files in /etc/netns. Dropping it removes all of it.
struct Net {
    name: String,
    etc: PathBuf,
    servers: Vec<Running>,
}

impl Net {
    fn start(world: &World) -> Result<Net> {
        let name = world.dir.file_name().context("no name")?.to_string_lossy();
        // With this word in it, one that is left behind is found.
        let name = format!("netkernel-{name}");
        let etc = PathBuf::from("/etc/netns").join(&name);
        let mut net = Net { name, etc, servers: Vec::new() };
        let ip = |words: &str| {
            let words: Vec<&str> = ["/bin/ip"].into_iter().chain(words.split(' ')).collect();
            world.run(Side::Plain, &words, LIMIT)
        };
        ip(&format!("netns add {}", net.name))?;
        ip(&format!("-n {} link set lo up", net.name))?;
        for address in ["192.0.2.1/32", "192.0.2.2/32", "192.0.2.53/32", "2001:db8::1/128"] {
            ip(&format!("-n {} addr add {address} dev lo", net.name))?;
        }
        fs::create_dir_all(&net.etc)?;
        let resolv = format!("nameserver {DNS}\nsearch nk.test\noptions timeout:1 attempts:1\n");
        fs::write(net.etc.join("resolv.conf"), resolv)?;
        let hosts = "127.0.0.1 localhost\n192.0.2.2 hosted.nk.test hosted\n";
        fs::write(net.etc.join("hosts"), hosts)?;
        let words = [
            "/usr/sbin/dnsmasq",
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--no-resolv",
            "--no-hosts",
            "--user=root",
            "--pid-file=",
            "--bind-interfaces",
            &format!("--listen-address={DNS}"),
            "--host-record=web.nk.test,192.0.2.1,2001:db8::1",
            "--host-record=four.nk.test,192.0.2.1",
            "--host-record=both.nk.test,192.0.2.2",
            "--cname=alias.nk.test,web.nk.test",
            "--mx-host=nk.test,web.nk.test,10",
            "--local=/nk.test/",
            // Nobody answers there.
            "--server=/silent.test/192.0.2.99",
        ];
        net.serve(world, "dnsmasq", &words)?;
        let page = world.write("index.html", "found by name\n")?;
        let words = [
            "/usr/bin/python3",
            "-m",
            "http.server",
            "--bind",
            "::",
            "--directory",
            &page[..page.len() - 11],
            HTTP,
        ];
        net.serve(world, "http", &words)?;
        eventually(Duration::from_secs(15), || {
            net.must_live()?;
            let there = ["/usr/bin/getent", "ahosts", "web.nk.test"];
            world.run(Side::Plain, &net.native(&there), LIMIT)?;
            let url = format!("http://192.0.2.1:{HTTP}/");
            world.run(Side::Plain, &net.native(&["/usr/bin/curl", "-sS", &url]), LIMIT)
        })
        .context("the servers of the namespace")?;
        Ok(net)
    }

    fn serve(&mut self, world: &World, name: &str, words: &[&str]) -> Result<()> {
        self.servers.push(world.start(name, Side::Plain, &self.native(words))?);
        Ok(())
    }

    fn must_live(&mut self) -> Result<()> {
        self.servers.iter_mut().try_for_each(Running::must_live)
    }

    /// The words of a program in the namespace.
    fn native(&self, words: &[&str]) -> Vec<String> {
        ["/bin/ip", "netns", "exec", &self.name]
            .into_iter()
            .chain(words.iter().copied())
            .map(str::to_owned)
            .collect()
    }

    /// The words of a guest with its sockets in the namespace.
    fn guest(&self, world: &World, words: &[&str]) -> Result<Vec<String>> {
        let mut all = world.prefix(Side::Guest)?;
        if all.pop().is_none() {
            return Ok(self.native(words));
        }
        let net = format!("netns:{}", self.name);
        all.extend(
            ["--net", &net, "--"].into_iter().chain(words.iter().copied()).map(str::to_owned),
        );
        Ok(all)
    }

    /// Runs a program both ways: what it says must be the same.
    fn compare(&self, world: &World, words: &[&str]) -> Result<String> {
        let native = world.run(Side::Plain, &self.native(words), LIMIT)?;
        let guest = world.run(Side::Plain, &self.guest(world, words)?, LIMIT)?;
        let other = native.lines().zip(guest.lines()).find(|(n, g)| n != g);
        ensure!(native == guest, "{}: natively and as a guest: {other:?}", words[0]);
        Ok(guest)
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        self.servers.clear();
        let _ = fs::remove_dir_all(&self.etc);
        let _ = std::process::Command::new("/bin/ip").args(["netns", "del", &self.name]).status();
    }
}

const PYTHON: &str = r#"
import socket, ctypes
def show(what, call):
    try: print(what, call())
    except OSError as e: print(what, type(e).__name__, e.errno, e.strerror)
for name in ["web.nk.test", "web", "four", "alias", "hosted", "localhost", "absent.nk.test", "absent", "x" * 70 + ".nk.test", "a" * 300, "", "web.nk.test."]:
    for family in (0, socket.AF_INET, socket.AF_INET6):
        show((name[:20], family), lambda: socket.getaddrinfo(name.encode(), 80, family, socket.SOCK_STREAM))
    show(name[:20], lambda: socket.gethostbyname_ex(name.encode()))
show("canonical", lambda: socket.getaddrinfo("alias", "http", flags=socket.AI_CANONNAME))
show("configured", lambda: socket.getaddrinfo("web", 80, flags=socket.AI_ADDRCONFIG))
show("mapped", lambda: socket.getaddrinfo("four", 80, socket.AF_INET6, flags=socket.AI_V4MAPPED))
show("silent", lambda: socket.getaddrinfo("x.silent.test", 80))
for address in ["192.0.2.1", "192.0.2.2", "192.0.2.77", "2001:db8::1"]:
    show(address, lambda: socket.gethostbyaddr(address))
    show(address, lambda: socket.getnameinfo((address, 80), 0))
    show(address, lambda: socket.getnameinfo((address, 80), socket.NI_NAMEREQD))
libc = ctypes.CDLL(None, use_errno=True)
location = libc.__h_errno_location
location.restype = ctypes.POINTER(ctypes.c_int)
def records(function, name, kind, room=512):
    answer = ctypes.create_string_buffer(room)
    n = getattr(libc, function)(name, 1, kind, answer, room)
    # Past the number of the question, which is drawn.
    return (n, answer.raw[2:max(n, 2)].hex() if n > 0 else location()[0])
for function in ("res_query", "res_search"):
    for name in (b"nk.test", b"web", b"web.nk.test", b"absent.nk.test"):
        for kind in (1, 15, 28):
            show((function, name, kind), lambda: records(function, name, kind))
"#;

/// curl, wget, getent, python3, perl: by names of the server, of hosts, and of the search list.
fn programs(world: &mut World, _: Mode) -> Result<String> {
    let mut net = Net::start(world)?;
    for host in ["web.nk.test", "web", "alias", "hosted", "four.nk.test", "localhost"] {
        let url = format!("http://{host}:{HTTP}/index.html");
        for words in [
            &["/usr/bin/curl", "-sS", "--fail", "-m", "20"][..],
            &["/usr/bin/wget", "-qO-", "-T", "20"],
        ] {
            let got =
                world.run(Side::Plain, &net.guest(world, &[words, &[&url]].concat())?, LIMIT)?;
            ensure!(got == "found by name\n", "{} of {url}: {got:?}", words[0]);
        }
    }
    let absent = format!("http://absent.nk.test:{HTTP}/");
    let words = net.guest(world, &["/usr/bin/curl", "-sS", "-m", "20", &absent])?;
    let ended = world.start("curl", Side::Plain, &words)?.finish(LIMIT)?;
    ensure!(
        ended.status.code() == Some(6),
        "curl of an absent name: {} {}",
        ended.how(),
        ended.err
    );
    for database in ["ahosts", "hosts", "ahostsv4", "ahostsv6"] {
        for name in ["web", "alias.nk.test", "hosted", "localhost"] {
            net.compare(world, &["/usr/bin/getent", database, name])?;
        }
    }
    let said = net.compare(world, &["/usr/bin/python3", "-c", PYTHON])?;
    ensure!(said.contains("192.0.2.1") && said.contains("2001:db8::1"), "{said}");
    ensure!(said.contains("'hosted.nk.test'") && said.contains("gaierror -3"), "{said}");
    let perl = "print join('.', unpack('C4', (gethostbyname('web'))[4])), qq(\\n)";
    net.compare(world, &["/usr/bin/perl", "-e", perl])?;
    net.must_live()?;
    Ok(format!("{} lines of python3 the same", said.lines().count()))
}

const ADDRESSES: &str = r#"
import socket, errno
def show(*question, **how):
    try: print(question, how, sorted(map(str, socket.getaddrinfo(*question, **how))))
    except OSError as e: print(question, how, type(e).__name__, e.errno)
for family in (0, socket.AF_INET, socket.AF_INET6):
    for flags in (0, socket.AI_PASSIVE, socket.AI_NUMERICHOST):
        show(None, 8080, family, socket.SOCK_STREAM, flags=flags)
        show("192.0.2.7", 80, family, socket.SOCK_STREAM, flags=flags)
        show("::1", 80, family, socket.SOCK_STREAM, flags=flags)
    show("web.nk.test", 80, family, flags=socket.AI_NUMERICHOST)
"#;

/// Without names a server still finds what to bind to, and a client an address that is written as one; the rest fails at once.
fn nameless(world: &mut World, _: Mode) -> Result<String> {
    let mut prefix = world.prefix(Side::Guest)?;
    if prefix.pop().is_none() {
        return Ok("natively every guest has names".to_owned());
    }
    prefix.extend(["--name", NAMELESS, "--"].map(str::to_owned));
    let run = |words: &[&str]| {
        let words: Vec<&str> =
            prefix.iter().map(String::as_str).chain(words.iter().copied()).collect();
        world.start("nameless", Side::Plain, &words)?.finish(LIMIT)
    };
    let words = ["/usr/bin/python3", "-c", ADDRESSES];
    let (native, guest) = (world.run(Side::Plain, &words, LIMIT)?, run(&words)?);
    let other = native.lines().zip(guest.out.lines()).find(|(n, g)| n != g);
    ensure!(native == guest.out, "natively and as a guest: {other:?} {}", guest.err);
    let asks = "import socket\ntry: socket.getaddrinfo('localhost', 80)\nexcept OSError as e: print(e.errno)";
    let said = run(&["/usr/bin/python3", "-c", asks])?;
    ensure!(said.out == format!("{}\n", EAI_FAIL), "a name: {:?} {}", said.out, said.err);
    Ok(format!("{} lines of python3 the same", native.lines().count()))
}

/// curl checks the certificate against the name.
fn tls(world: &mut World, _: Mode) -> Result<String> {
    let mut net = Net::start(world)?;
    let (ca_key, ca) = (world.path("ca.key"), world.path("ca.pem"));
    let (key, request, certificate) =
        (world.path("key.pem"), world.path("request"), world.path("web.pem"));
    let names = world.write("names", "subjectAltName=DNS:web.nk.test,DNS:web\n")?;
    let openssl = |words: &[&str]| {
        world.run(Side::Plain, &[&["/usr/bin/openssl"], words].concat(), LIMIT).map(drop)
    };
    let new = ["-newkey", "rsa:2048", "-nodes", "-subj", "/CN=nk test"];
    openssl(
        &[&["req", "-x509", "-days", "2", "-keyout", &ca_key, "-out", &ca][..], &new].concat(),
    )?;
    openssl(&[&["req", "-keyout", &key, "-out", &request][..], &new].concat())?;
    openssl(&[
        "x509",
        "-req",
        "-in",
        &request,
        "-CA",
        &ca,
        "-CAkey",
        &ca_key,
        "-CAcreateserial",
        "-days",
        "2",
        "-extfile",
        &names,
        "-out",
        &certificate,
    ])?;
    let words = [
        "/usr/bin/openssl",
        "s_server",
        "-accept",
        TLS,
        "-cert",
        &certificate,
        "-key",
        &key,
        "-www",
        "-quiet",
    ];
    net.serve(world, "s_server", &words)?;
    let ask = |host: &str| -> Result<process::Ended> {
        let url = format!("https://{host}:{TLS}/");
        let words = ["/usr/bin/curl", "-sS", "-m", "20", "-o", "/dev/null", "--cacert", &ca, &url];
        world.start("curl", Side::Plain, &net.guest(world, &words)?)?.finish(LIMIT)
    };
    eventually(Duration::from_secs(15), || {
        let ended = ask("web.nk.test")?;
        ensure!(ended.status.success(), "{} {}", ended.how(), ended.err);
        Ok(())
    })?;
    ensure!(ask("web")?.status.success(), "by the name of the search list");
    let other = ask("hosted")?;
    ensure!(
        other.status.code() == Some(60),
        "a name of another server: {} {}",
        other.how(),
        other.err
    );
    net.must_live()?;
    Ok(String::new())
}

/// A program that looks a name up for each line it reads, and says how that ended.
const LOOKER: &str = r#"
import socket, sys, threading
def look(name):
    try: return socket.getaddrinfo(name, 80, type=socket.SOCK_STREAM)[0][4][0]
    except OSError as e: return "error %d" % e.errno
for line in sys.stdin:
    words = line.split()
    if words[0] == "many":
        threads = [threading.Thread(target=look, args=(words[1],), daemon=True) for _ in range(int(words[2]))]
        for t in threads: t.start()
        print("started", flush=True)
    else:
        print(words[0], look(words[0]), flush=True)
"#;

struct Looker {
    running: Running,
    input: std::process::ChildStdin,
    lines: usize,
}

impl Looker {
    fn start(world: &World, net: &Net) -> Result<Looker> {
        let words = net.guest(world, &["/usr/bin/python3", "-c", LOOKER])?;
        let mut running = world.start_piped("looker", Side::Plain, &words)?;
        let input = running.input().context("no pipe")?;
        Ok(Looker { running, input, lines: 0 })
    }

    fn ask(&mut self, line: &str) -> Result<String> {
        use std::io::Write;
        writeln!(self.input, "{line}")?;
        let n = self.lines;
        self.lines += 1;
        eventually(Duration::from_secs(30), || {
            self.running.must_live()?;
            let out = self.running.out();
            let whole = out.ends_with('\n');
            match out.lines().nth(n).filter(|_| whole) {
                Some(l) => Ok(l.to_owned()),
                None => bail!("no answer to {line:?}"),
            }
        })
    }

    fn finds(&mut self) -> Result<()> {
        let said = self.ask("four.nk.test")?;
        ensure!(said == "four.nk.test 192.0.2.1", "it found {said:?}");
        Ok(())
    }
}

/// What `nk guests` says of the one guest's names.
fn counted(world: &World, what: &str) -> Result<Option<u64>> {
    let text = world.control(&["guests", "--json"])?;
    let guests: serde_json::Value = serde_json::from_str(&text)?;
    Ok(guests.pointer(&format!("/0/names/{what}")).context("no such count")?.as_u64())
}

fn resolvers(world: &mut World, _: Mode) -> Result<String> {
    let net = Net::start(world)?;
    let mut looker = Looker::start(world, &net)?;
    looker.finds()?;
    if world.options.nk.is_none() {
        return Ok("natively there is nothing to kill".to_owned());
    }
    // Killed while nobody asks, and while many do.
    for round in 0..3 {
        let pid = counted(world, "resolver_pid")?.context("no resolver")?;
        if round > 0 {
            ensure!(looker.ask("many x.silent.test 8")? == "started", "threads");
        }
        signal_pid(u32::try_from(pid)?, Signal::KILL);
        looker.finds()?;
        ensure!(
            counted(world, "resolver_pid")? != Some(pid),
            "the killed resolver is still listed"
        );
    }
    // More at once than a resolver looks up: the one who waits behind them has its answer all the same.
    ensure!(looker.ask("many x.silent.test 60")? == "started", "threads");
    looker.finds()?;
    let silent = looker.ask("y.silent.test")?;
    ensure!(silent == "y.silent.test error -3", "a server that does not answer: {silent:?}");
    let again = counted(world, "try_again")?;
    ensure!(again > Some(0), "what was not answered is not counted: {again:?}");
    // The daemon is killed: whoever asks waits for the next one.
    world.kill_daemon()?;
    world.start_daemon()?;
    looker.finds()?;
    // A resolver that nobody asks ends; then nothing of it is left, and the next question starts another.
    eventually(Duration::from_secs(40), || {
        ensure!(counted(world, "resolver_pid")?.is_none(), "the idle resolver is still there");
        Ok(())
    })?;
    looker.finds()?;
    let Looker { running, input, .. } = looker;
    drop(input);
    running.ok(LIMIT)?;
    Ok(String::new())
}
