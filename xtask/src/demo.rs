//! `cargo xtask demo`: nginx and curl as guests, what the engine counted meanwhile, and native nginx beside it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nk_programs::isolation::{self, Isolation};
use nk_programs::leaks::describe_guest;
use nk_programs::load::WrkLoad;
use nk_programs::nginx::{Nginx, WORKERS};
use nk_programs::procfs;
use nk_programs::world::{Options, Side, World};
use serde_json::Value;

use crate::measure::{Sample, background, cpus, sample, spread, thousands};
use crate::{packages, workspace};

const CONNECTIONS: u32 = 64;
const ROUNDS: usize = 3;
const SECONDS: u32 = 2;

pub(crate) fn run(words: &[String]) -> Result<()> {
    if let Some(word) = words.first() {
        bail!("the demo takes no arguments: {word:?}");
    }
    packages::ensure_programs(&[packages::PROGRAMS])?;
    println!("building");
    workspace::build_release()?;
    let begun = Instant::now();
    let options = Options { nk: Some(workspace::release("nk")?), ..Options::default() };
    let world = World::new(&options)?;
    show(&world)?;
    world.close().context("cleaning up")?;
    println!(
        "\ncleaned up: no process and no file of NetKernel is left ({:.0} s, without building)",
        begun.elapsed().as_secs_f64()
    );
    Ok(())
}

fn show(world: &World) -> Result<()> {
    let native = Nginx::start(world, Side::Plain)?;
    let guest = Nginx::start(world, Side::Guest)?;
    let pid = guest.running.pid();
    println!("\nnginx from Debian's package, unmodified, as a guest: pid {pid}, {WORKERS} workers");
    println!("  {:<34} {}", "asked by plain curl", curl(world, Side::Plain, &guest.url())?);
    println!(
        "  {:<34} {}",
        "asked by curl as another guest",
        curl(world, Side::Guest, &guest.url())?
    );
    println!(
        "  {:<34} {}",
        "asked by that guest over IPv6",
        curl(world, Side::Guest, &guest.url_v6())?
    );

    let others = background(Duration::from_millis(500))?;
    let cpus = cpus();
    println!(
        "\nplain wrk, {CONNECTIONS} connections, 64-byte answers, median of {ROUNDS} runs of {SECONDS} s each,"
    );
    println!("guest and native in turn ({cpus} CPUs, {:.0} % busy before):", others * 100.0);
    println!("  {:<40} {:>10} {:>10} {:>8}", "", "native", "guest", "ratio");
    for (name, short) in [("keep-alive", false), ("one connection per request", true)] {
        let [native, guest] = compare(world, [&native, &guest], short)?;
        row(&format!("{name}: requests/s"), native.per_second, guest.per_second, 0);
        row(
            "  CPU of the machine, us/request",
            native.cpu_us_per_request,
            guest.cpu_us_per_request,
            1,
        );
    }

    let found = inspect(world, &guest)?;
    counted(&found.engine)?;
    println!("\nwhile wrk was asking, in the guest nginx");
    let Isolation { processes, sockets, .. } = found.isolation;
    println!(
        "  {processes} processes held {sockets} sockets, none of them an IP socket (inodes compared"
    );
    println!("  with /proc/net/tcp and the like); {} held {} IP sockets", found.holder, found.held);
    let interfaces: Vec<String> =
        found.interfaces.iter().map(|name| format!("{name}: 0 packets")).collect();
    println!("  interfaces of its network namespace: {}", interfaces.join(", "));
    guest.stop()?;
    native.stop()
}

fn curl(world: &World, side: Side, url: &str) -> Result<String> {
    let format = "%{http_code}, %{size_download} bytes in %{time_total} s";
    let words =
        ["/usr/bin/curl", "-sS", "--fail", "-m", "20", "-o", "/dev/null", "-w", format, url];
    world.run(side, &words, Duration::from_secs(30))
}

/// Medians of interleaved rounds, for servers in the same order.
fn compare(world: &World, servers: [&Nginx; 2], short: bool) -> Result<[Sample; 2]> {
    let mut samples: [Vec<Sample>; 2] = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        for (server, samples) in servers.iter().zip(&mut samples) {
            let url = server.url();
            let load = WrkLoad {
                url: &url,
                connections: CONNECTIONS,
                threads: 2,
                seconds: SECONDS,
                short,
            };
            samples.push(sample(world, &load, &[])?);
        }
    }
    let median = |samples: &[Sample]| {
        anyhow::Ok(Sample {
            per_second: spread(samples.iter().map(|s| s.per_second))?.median,
            cpu_us_per_request: spread(samples.iter().map(|s| s.cpu_us_per_request))?.median,
        })
    };
    let [native, guest] = &samples;
    Ok([median(native)?, median(guest)?])
}

fn row(name: &str, native: f64, guest: f64, digits: usize) {
    println!("  {name:<40} {native:>10.digits$} {guest:>10.digits$} {:>8.2}", guest / native);
}

/// What was seen of the guest under load.
struct Found {
    isolation: Isolation,
    interfaces: Vec<String>,
    engine: Value,
    /// Who holds the real sockets, and how many.
    holder: String,
    held: usize,
}

fn inspect(world: &World, guest: &Nginx) -> Result<Found> {
    let url = guest.url();
    let load =
        WrkLoad { url: &url, connections: CONNECTIONS, threads: 1, seconds: 2, short: false };
    let wrk = load.start(world, Side::Plain)?;
    std::thread::sleep(Duration::from_millis(1000));
    let pid = guest.running.pid();
    let hosts = world.nk_pids()?;
    let (isolation, held) = isolation::check_busy(pid, &hosts)?;
    let engine =
        describe_guest(world, pid)?.get("engine").cloned().context("no engine in `nk guests`")?;
    let most = |pid: &&u32| procfs::descriptors(**pid).len();
    let holder = hosts.iter().max_by_key(most).context("no daemon")?;
    let role = procfs::command_line(*holder).split(' ').nth(1).unwrap_or("?").to_owned();
    let interfaces = procfs::interface_counters(pid)?.into_keys().collect();
    wrk.ok(load.limit())?;
    let holder = format!("nk {role}, pid {holder},");
    Ok(Found { isolation, interfaces, engine, holder, held })
}

fn counted(engine: &Value) -> Result<()> {
    let number =
        |key: &str| engine.get(key).and_then(Value::as_u64).with_context(|| format!("no {key}"));
    println!("\nCoreEngine counted for the guest nginx");
    for (name, key) in
        [("NQEs from the guest", "nqes_from_guest"), ("NQEs to the guest", "nqes_to_guest")]
    {
        let operations =
            engine.get(key).and_then(Value::as_object).with_context(|| format!("no {key}"))?;
        let list = operations
            .iter()
            .map(|(op, count)| format!("{op} {}", thousands(count.as_u64().unwrap_or_default())));
        wrapped(name, &list.collect::<Vec<_>>());
    }
    let (sent, received) = (number("bytes_sent")?, number("bytes_received")?);
    wrapped(
        "bytes",
        &[format!("sent {}", thousands(sent)), format!("received {}", thousands(received))],
    );
    let (open, all) = (number("connections_open")?, number("connections_total")?);
    wrapped(
        "connections",
        &[format!("open {}", thousands(open)), format!("in all {}", thousands(all))],
    );
    ensure!(sent > 0 && received > 0 && all > 0, "the engine saw no traffic");
    Ok(())
}

/// A name, then items, in lines of at most 80 columns.
fn wrapped(name: &str, items: &[String]) {
    let indent = 23;
    let mut line = format!("  {name:<20} ");
    for (index, item) in items.iter().enumerate() {
        let item = if index + 1 < items.len() { format!("{item}, ") } else { item.clone() };
        if line.len() + item.trim_end().len() > 80 {
            println!("{}", line.trim_end());
            line = " ".repeat(indent);
        }
        line += &item;
    }
    println!("{}", line.trim_end());
}
