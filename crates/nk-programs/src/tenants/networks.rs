//! Networks that are made for guests: each its own port 80, filter and tools. All of it lies in network namespaces of the test's own.

use std::fs;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use super::{describe, guests_only, ownership};
use crate::process::{Running, eventually};
use crate::suite::Test;
use crate::world::{Mode, Side, World};

const IP: &str = "/bin/ip";
const CURL: &str = "/usr/bin/curl";
const NC: &str = "/bin/nc.openbsd";
const LIMIT: Duration = Duration::from_secs(20);
/// The host's address in the bridge, and the guests'.
const HOST: &str = "10.9.0.1";
const ONE: &str = "10.9.0.2";
const TWO: &str = "10.9.0.3";
const LAN: &str = "10.9.0.4";

pub(super) fn tests() -> Vec<Test> {
    guests_only(&[("networks: made on request, and everything in them", networks)])
}

/// The namespaces of one test, removed with it.
struct Spaces(String);

impl Drop for Spaces {
    fn drop(&mut self) {
        for which in ["host", "one", "two", "lan", "foreign"] {
            let _ = Command::new(IP).args(["netns", "del", &self.name(which)]).output();
        }
    }
}

impl Spaces {
    fn name(&self, which: &str) -> String {
        format!("{}-{which}", self.0)
    }

    /// `nsenter` keeps the mount namespace, which `ip netns exec` does not: names made inside are then seen by all.
    fn enter(&self, which: &str) -> Vec<String> {
        vec!["/usr/bin/nsenter".to_owned(), format!("--net=/var/run/netns/{}", self.name(which))]
    }

    fn output(&self, which: &str, words: &[&str]) -> Result<Output> {
        let enter = self.enter(which);
        let mut all = enter.iter().map(String::as_str).chain(words.iter().copied());
        let mut command = Command::new(all.next().context("no command")?);
        command.args(all).output().with_context(|| format!("{words:?}"))
    }

    fn run(&self, which: &str, words: &str) -> Result<String> {
        let words: Vec<&str> = words.split(' ').collect();
        let output = self.output(which, &words)?;
        ensure!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// What the host gets from a guest's port 80, or curl's status.
    fn curl(&self, address: &str) -> Result<std::result::Result<String, i32>> {
        let output =
            self.output("host", &[CURL, "-s", "-m", "2", &format!("http://{address}/")])?;
        Ok(match output.status.code() {
            Some(0) => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
            code => Err(code.unwrap_or(-1)),
        })
    }

    fn exist(&self, which: &str) -> Result<bool> {
        let output = Command::new(IP).args(["netns", "list"]).output()?;
        let name = self.name(which);
        let listed = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(listed.lines().any(|l| l.split(' ').next() == Some(&name)))
    }

    /// The daemon's namespace: a bridge, and a link into it over which macvlans lie.
    fn make_host(&self) -> Result<()> {
        let name = self.name("host");
        let made = Command::new(IP).args(["netns", "add", &name]).output()?;
        ensure!(made.status.success(), "ip netns add: {}", String::from_utf8_lossy(&made.stderr));
        for words in [
            "link set lo up",
            "link add br0 type bridge",
            &format!("address add {HOST}/24 dev br0"),
            "link set br0 up",
            "link add lan type veth peer name lan-port",
            "link set lan-port master br0",
            "link set lan-port up",
            "link set lan up",
        ] {
            self.run("host", &format!("{IP} {words}"))?;
        }
        Ok(())
    }

    fn config(&self) -> String {
        let (one, two, lan) = (self.name("one"), self.name("two"), self.name("lan"));
        format!(
            "[guest.one]
namespace = \"netns:{one}\"
listen = [\"0.0.0.0:80\"]
[guest.one.net]
link = \"veth\"
bridge = \"br0\"
addresses = [\"{ONE}/24\", \"fd09::2/64\"]
gateway = \"{HOST}\"
[guest.{two}.net]
link = \"veth\"
bridge = \"br0\"
addresses = [\"{TWO}/24\"]
[guest.lan]
namespace = \"netns:{lan}\"
[guest.lan.net]
link = \"macvlan\"
parent = \"lan\"
addresses = [\"{LAN}/24\"]
[guest.thief]
namespace = \"netns:{one}\"
"
        )
    }
}

/// nginx on port 80 of all addresses, that answers with the guest's name.
fn nginx(world: &World, guest: &str) -> Result<Running> {
    let home = world.dir.join(guest);
    fs::create_dir_all(&home)?;
    let home = home.display();
    let file = world.write(
        &format!("{guest}.conf"),
        format!(
            "user root; worker_processes 1; pid {home}/pid; error_log {home}/error.log;
events {{ worker_connections 64; }}
http {{ access_log off; client_body_temp_path {home}/b; proxy_temp_path {home}/p; fastcgi_temp_path {home}/f;
uwsgi_temp_path {home}/u; scgi_temp_path {home}/s;
server {{ listen 80; location / {{ default_type text/plain; return 200 \"{guest}\\n\"; }} }} }}
"
        ),
    )?;
    world.start_as(guest, &["/usr/sbin/nginx", "-c", &file, "-g", "daemon off;"])
}

fn networks(world: &mut World, _: Mode) -> Result<String> {
    let spaces = Spaces(format!("nkt{}", std::process::id()));
    spaces.make_host()?;
    world.options.host_prefix = spaces.enter("host");
    world.restart_with(&spaces.config())?;
    let two = spaces.name("two");
    let guests = [("one", ONE), (two.as_str(), TWO), ("lan", LAN)];
    let mut servers = Vec::new();
    for (guest, address) in guests {
        let mut server = nginx(world, guest)?;
        eventually(LIMIT, || {
            server.must_live()?;
            let got = spaces.curl(address)?;
            ensure!(got.as_deref() == Ok(guest), "{guest} at {address}: {got:?}");
            Ok(())
        })?;
        servers.push(server);
    }
    shown(world, &spaces)?;
    // getifaddrs tells a guest where its sockets are.
    let told = world.start_as("thief", &["/usr/bin/hostname", "-I"])?.ok(LIMIT)?;
    let told: Vec<&str> = told.split_whitespace().collect();
    ensure!(told.contains(&ONE) && told.contains(&"fd09::2"), "hostname -I in a guest: {told:?}");
    filtered(&spaces, &two)?;
    seen(world, &spaces)?;
    // Who shares the namespace gets neither the port nor a part of it, and a policy holds for its guest.
    let places = [ONE, "0.0.0.0", "::"].map(|ip| format!("tcp,{ip},80"));
    let said = ownership::places(world, "thief", &places)?;
    ensure!(said == ["EADDRINUSE"; 3], "another guest's port: {said:?}");
    for server in servers {
        server.stop(Signal::TERM, LIMIT)?;
    }
    let said =
        ownership::places(world, "one", &[format!("tcp,{ONE},81"), "tcp,0.0.0.0,80".into()])?;
    ensure!(said == ["EACCES", "yes"], "the policy: {said:?}");
    refused(world, &spaces)?;
    unnamed(world, &spaces)?;
    kept_and_removed(world, &spaces)?;
    Ok("3 guests on port 80, veth and macvlan".to_owned())
}

/// `nk guests` says where each is.
fn shown(world: &World, spaces: &Spaces) -> Result<()> {
    let one = describe(world, "one")?;
    ensure!(one["network"]["name"] == spaces.name("one").as_str(), "{}", one["network"]);
    let addresses = one["network"]["addresses"].as_array().context("no addresses")?;
    for wanted in [format!("{ONE}/24"), "fd09::2/64".to_owned()] {
        ensure!(addresses.iter().any(|a| *a == wanted.as_str()), "{addresses:?}");
    }
    let table = world.control(&["guests"])?;
    ensure!(table.contains(&format!("{ONE}/24")) && table.contains(&spaces.name("one")), "{table}");
    let routes = spaces.run("one", &format!("{IP} route"))?;
    ensure!(routes.contains(&format!("default via {HOST}")), "{routes}");
    Ok(())
}

/// A rule in one guest's namespace is that guest's.
fn filtered(spaces: &Spaces, two: &str) -> Result<()> {
    spaces.run("one", "/usr/sbin/nft add table ip t")?;
    let chain = "add chain ip t in { type filter hook input priority 0 ; }";
    spaces.run("one", &format!("/usr/sbin/nft {chain}"))?;
    spaces.run("one", "/usr/sbin/nft add rule ip t in tcp dport 80 drop")?;
    let got = [spaces.curl(ONE)?, spaces.curl(TWO)?];
    ensure!(got == [Err(28), Ok(two.to_owned())], "with a rule against one: {got:?}");
    spaces.run("one", "/usr/sbin/nft flush chain ip t in")?;
    let got = spaces.curl(ONE)?;
    ensure!(got.as_deref() == Ok("one"), "without it: {got:?}");
    Ok(())
}

/// ss and tcpdump in the namespace see the guest's connection.
fn seen(world: &World, spaces: &Spaces) -> Result<()> {
    let capture = [
        spaces.enter("one"),
        ["/usr/bin/tcpdump", "-nn", "-l", "-c", "3", "-i", "eth0", "tcp port 80"]
            .map(str::to_owned)
            .to_vec(),
    ];
    let mut capture = world.start("tcpdump", Side::Plain, &capture.concat())?;
    eventually(LIMIT, || {
        capture.must_live()?;
        ensure!(capture.err().contains("listening on"), "{}", capture.err());
        Ok(())
    })?;
    let client = [spaces.enter("host"), [NC, ONE, "80"].map(str::to_owned).to_vec()].concat();
    let mut client = world.start_piped("client", Side::Plain, &client)?;
    let input = client.input();
    eventually(LIMIT, || {
        let said = spaces.run("one", "/usr/bin/ss -Htn state established")?;
        let line = said.lines().find(|l| l.contains(&format!("{ONE}:80")) && l.contains(HOST));
        line.map(drop).with_context(|| format!("ss: {said}"))
    })?;
    let caught = capture.ok(LIMIT)?;
    ensure!(caught.contains(&format!("> {ONE}.80: Flags [S]")), "tcpdump: {caught}");
    drop(input);
    client.stop(Signal::TERM, LIMIT).map(drop)
}

/// A namespace that NetKernel did not make stays as it is, and the line is said.
fn refused(world: &World, spaces: &Spaces) -> Result<()> {
    let foreign = spaces.name("foreign");
    let made = Command::new(IP).args(["netns", "add", &foreign]).output()?;
    ensure!(made.status.success(), "ip netns add");
    let file = world.write("foreign.toml", format!("\n\n[guest.{foreign}.net]\n"))?;
    let output = Command::new(world.nk()?).args(["config", "check", &file]).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let why = "NetKernel did not make";
    ensure!(!output.status.success() && said.contains("line 3") && said.contains(why), "{said}");
    Ok(())
}

/// A guest without a section is where the configuration says, and not where it is started; the operator may name another place, nobody else.
fn unnamed(world: &World, spaces: &Spaces) -> Result<()> {
    let file = world.dir.join("nk.toml");
    let config = fs::read_to_string(&file)?;
    let (host, foreign) = (spaces.name("host"), spaces.name("foreign"));
    fs::write(&file, format!("namespace = \"netns:{foreign}\"\n{config}"))?;
    world.daemon().context("no daemon")?.running.signal(Signal::HUP)?;
    let engine = world.prefix_named(Side::Guest, Some("plain"))?;
    let at = engine.iter().position(|w| w == "--").context("no command")?;
    let (run, command) = engine.split_at(at);
    let net = ["--net".to_owned(), format!("netns:{host}")];
    let told = |words: &[&[String]]| -> Result<String> {
        let all =
            [&words.concat()[..], &["/usr/bin/hostname".to_owned(), "-I".to_owned()]].concat();
        Ok(world.start("plain", Side::Plain, &all)?.ok(LIMIT)?.trim().to_owned())
    };
    let user = ["/usr/bin/setpriv", "--reuid=33", "--regid=33", "--clear-groups"].map(String::from);
    eventually(LIMIT, || {
        let said = told(&[run, command])?;
        ensure!(said.is_empty(), "without a name: {said:?}");
        Ok(())
    })?;
    let said = told(&[run, &net, command])?;
    ensure!(said.contains(HOST), "root names one: {said:?}");
    let said = told(&[&user, run, &["--net".to_owned(), "host".to_owned()], command])?;
    ensure!(said.is_empty(), "a user names his own: {said:?}");
    Ok(())
}

/// A network is found again by the next daemon, with what others put into it, and goes with its section.
fn kept_and_removed(world: &mut World, spaces: &Spaces) -> Result<()> {
    world.kill_daemon()?;
    world.start_daemon()?;
    let rules = spaces.run("one", "/usr/sbin/nft list ruleset")?;
    ensure!(rules.contains("table ip t"), "the namespace was made anew: {rules}");
    let mut server = nginx(world, "one")?;
    eventually(LIMIT, || {
        server.must_live()?;
        let got = spaces.curl(ONE)?;
        ensure!(got.as_deref() == Ok("one"), "after the daemon's death: {got:?}");
        Ok(())
    })?;
    let file = world.dir.join("nk.toml");
    let config = fs::read_to_string(&file)?;
    let (without, _) = config.split_once("[guest.one]").context("no guest one")?;
    fs::write(&file, without)?;
    world.daemon().context("no daemon")?.running.signal(Signal::HUP)?;
    eventually(LIMIT, || {
        for gone in ["two", "lan"] {
            ensure!(!spaces.exist(gone)?, "{gone} is left");
        }
        Ok(())
    })?;
    if !spaces.exist("one")? {
        bail!("the network of a guest that runs was removed");
    }
    server.stop(Signal::TERM, LIMIT)?;
    eventually(LIMIT, || {
        ensure!(!spaces.exist("one")?, "the network of a guest that ended is left");
        let links = spaces.run("host", &format!("{IP} -br link"))?;
        ensure!(!links.contains("nk-"), "links are left: {links}");
        Ok(())
    })
}
