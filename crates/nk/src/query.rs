//! `nk guests`, `nk flows`, `nk nsm ls` and `nk why`: asks every daemon that this user can reach.

use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nk_attach::{Fds, Kind, Message};
use nk_host::config::DEFAULT_SOCKET;
use nk_host::{private, sys};
use serde_json::Value;

use crate::Failure;

mod why;

/// How long a daemon may take to answer.
const ANSWER_MAX_S: u64 = 5;

#[derive(Debug, clap::Args)]
pub(crate) struct From {
    /// Ask this daemon only [default: the one at /run/netkernel/nk.sock and all private ones]
    #[arg(long, value_name = "SOCKET")]
    engine: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Sends one request and gets what comes with the answer. `Err` carries an errno and its text.
pub(crate) fn request(socket: &Path, kind: Kind, text: &str) -> Result<Fds, (i32, String)> {
    let os = |e: i32| (e, std::io::Error::from_raw_os_error(e).to_string());
    let fd = sys::connect(socket).map_err(|e| (e.raw_os_error().unwrap_or(0), e.to_string()))?;
    // A daemon that hangs must not hang who asks.
    let _ = sys::set_receive_timeout(&fd, ANSWER_MAX_S);
    nk_attach::send(fd.as_raw_fd(), &Message::new(kind).with_text(text), &[]).map_err(os)?;
    let (reply, fds, _) =
        nk_attach::recv(fd.as_raw_fd(), false).map_err(|e| (libc::EIO, unanswered(e)))?;
    match reply.status {
        0 => Ok(fds),
        errno => Err((errno, reply.text().unwrap_or("").to_owned())),
    }
}

fn unanswered(e: nk_attach::RecvError) -> String {
    match e {
        // A keeper holds the socket of a daemon that was killed.
        nk_attach::RecvError::Os(libc::EAGAIN) => {
            format!("none in {ANSWER_MAX_S} s: it hangs, or was killed and is to be started again")
        }
        nk_attach::RecvError::Os(e) => std::io::Error::from_raw_os_error(e).to_string(),
        e => format!("{e:?}"),
    }
}

/// One daemon's answer.
pub(crate) fn ask(socket: &Path, question: &str) -> Result<Value, (i32, String)> {
    let mut fds = request(socket, Kind::Query, question)?;
    let Some(memfd) = sys::take(&mut fds, 0) else {
        return Err((libc::EPROTO, "an empty answer".into()));
    };
    let mut text = String::new();
    std::fs::File::from(memfd).read_to_string(&mut text).map_err(|e| (libc::EIO, e.to_string()))?;
    serde_json::from_str(&text).map_err(|e| (libc::EPROTO, e.to_string()))
}

/// The daemon that is named, else all that there may be.
pub(crate) fn reachable(engine: Option<&PathBuf>) -> Vec<PathBuf> {
    if let Some(p) = engine {
        return vec![p.clone()];
    }
    let mut all = vec![PathBuf::from(DEFAULT_SOCKET)];
    all.extend(private::sockets());
    if rustix::process::geteuid().is_root() {
        all.extend(private::sockets_of_all_users());
    }
    all.sort();
    all.dedup();
    all
}

/// The lists of all daemons in one.
fn collect(from: &From, question: &str) -> Result<Vec<Value>, Failure> {
    let mut rows = Vec::new();
    for socket in reachable(from.engine.as_ref()) {
        match ask(&socket, question) {
            Ok(Value::Array(mut r)) => rows.append(&mut r),
            Ok(_) => return Err(Failure::new(1, format!("{}: an odd answer", socket.display()))),
            // There need not be a daemon on the default socket, and a private one may have just ended.
            Err((libc::ENOENT | libc::ECONNREFUSED, _)) if from.engine.is_none() => {}
            Err((_, why)) => {
                return Err(Failure::new(
                    1,
                    format!("no daemon answers at {}: {why}", socket.display()),
                ));
            }
        }
    }
    Ok(rows)
}

fn print_json(rows: &Value) -> Result<(), Failure> {
    println!("{}", serde_json::to_string_pretty(rows)?);
    Ok(())
}

fn text(v: &Value, key: &str) -> String {
    match v.get(key) {
        Some(Value::String(s)) => s.clone(),
        Some(Value::Array(a)) => a.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
        Some(Value::Null) | None => "-".into(),
        Some(other) => other.to_string(),
    }
}

/// Texts of an array, the first of many.
fn list(v: &Value, key: &str) -> String {
    const SHOWN: usize = 3;
    let all: Vec<&str> = v
        .get(key)
        .and_then(Value::as_array)
        .map(|a| a.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default();
    match all.len() {
        0 => "-".to_owned(),
        n if n > SHOWN => format!(
            "{},+{}",
            all.iter().take(SHOWN).copied().collect::<Vec<_>>().join(","),
            n - SHOWN
        ),
        _ => all.join(","),
    }
}

/// Prints columns as wide as their widest entry; the first of each row is left-aligned, and names say which others are not.
fn table(header: &[&str], right: &[usize], rows: &[Vec<String>]) {
    let mut widths: Vec<usize> = header.iter().map(|h| h.len()).collect();
    for row in rows {
        for (w, cell) in widths.iter_mut().zip(row) {
            *w = (*w).max(cell.len());
        }
    }
    let line = |cells: Vec<&str>| {
        let padded: Vec<String> = cells
            .iter()
            .zip(&widths)
            .enumerate()
            .map(
                |(i, (c, w))| {
                    if right.contains(&i) { format!("{c:>w$}") } else { format!("{c:<w$}") }
                },
            )
            .collect();
        println!("{}", padded.join("  ").trim_end());
    };
    line(header.to_vec());
    for row in rows {
        line(row.iter().map(String::as_str).collect());
    }
}

pub(crate) fn guests(from: &From) -> Result<(), Failure> {
    let rows = collect(from, "guests")?;
    if from.json {
        return print_json(&Value::Array(rows));
    }
    let none = Value::Null;
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|g| {
            let e = g.get("engine").unwrap_or(&none);
            let pids: Vec<String> = g
                .get("processes")
                .and_then(Value::as_array)
                .map(|p| p.iter().map(|p| text(p, "pid")).collect())
                .unwrap_or_default();
            // Where it is, and behind a plus how many sockets it still has where it was.
            let now = text(g, "nsm_name");
            let by_nsm = g.get("nsm_sockets").and_then(Value::as_object);
            let left = by_nsm.into_iter().flatten().filter(|(name, _)| **name != now);
            let left: Vec<String> = left.map(|(name, n)| format!("+{name}:{n}")).collect();
            vec![
                text(g, "name"),
                now + &left.concat(),
                text(g, "id"),
                text(g, "uid"),
                text(e, "sockets"),
                text(e, "connections_open"),
                text(e, "connections_total"),
                text(e, "bytes_sent"),
                text(e, "bytes_received"),
                text(g.get("names").unwrap_or(&none), "asked"),
                g.pointer("/network/name")
                    .map_or("-".into(), |n| n.as_str().unwrap_or("-").to_owned()),
                g.get("network").map_or("-".into(), |n| list(n, "addresses")),
                pids.join(","),
            ]
        })
        .collect();
    let header = [
        "GUEST",
        "NSM",
        "ID",
        "UID",
        "SOCKETS",
        "OPEN",
        "EVER",
        "SENT",
        "RECEIVED",
        "NAMES",
        "NETNS",
        "ADDRESSES",
        "PIDS",
    ];
    table(&header, &[2, 3, 4, 5, 6, 7, 8, 9], &cells);
    Ok(())
}

pub(crate) fn flows(from: &From) -> Result<(), Failure> {
    let rows = collect(from, "flows")?;
    if from.json {
        return print_json(&Value::Array(rows));
    }
    let keys = [
        "protocol",
        "state",
        "recv_q",
        "send_q",
        "local",
        "peer",
        "guest",
        "nsm",
        "pids",
        "bytes_sent",
        "bytes_received",
    ];
    let cells: Vec<Vec<String>> =
        rows.iter().map(|f| keys.iter().map(|k| text(f, k)).collect()).collect();
    let header = [
        "NETID", "STATE", "RECV-Q", "SEND-Q", "LOCAL", "PEER", "GUEST", "NSM", "PID", "SENT",
        "RECEIVED",
    ];
    table(&header, &[2, 3, 9, 10], &cells);
    Ok(())
}

pub(crate) fn nsms(from: &From) -> Result<(), Failure> {
    let rows = collect(from, "nsms")?;
    if from.json {
        return print_json(&Value::Array(rows));
    }
    let keys = [
        "name",
        "stack",
        "placement",
        "pid",
        "state",
        "restarts",
        "cores",
        "guests",
        "sockets",
        "bytes_sent",
        "bytes_received",
    ];
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|n| {
            let cell = |k: &&str| match text(n, k) {
                // No core is named: any.
                t if t.is_empty() => "all".to_owned(),
                t => t,
            };
            keys.iter().map(cell).collect()
        })
        .collect();
    let header = [
        "NSM",
        "STACK",
        "PLACEMENT",
        "PID",
        "STATE",
        "RESTARTS",
        "CORES",
        "GUESTS",
        "SOCKETS",
        "SENT",
        "RECEIVED",
    ];
    table(&header, &[3, 5, 7, 8, 9, 10], &cells);
    Ok(())
}

pub(crate) fn why(from: &From, pid: i32) -> Result<(), Failure> {
    let question = format!("why {pid}");
    for socket in reachable(from.engine.as_ref()) {
        match ask(&socket, &question) {
            Ok(v) if from.json => return print_json(&v),
            Ok(v) => {
                why::print(&v);
                return Ok(());
            }
            Err((libc::ENOENT | libc::ECONNREFUSED | libc::ESRCH, _)) => {}
            Err((_, why)) => {
                return Err(Failure::new(1, format!("{}: {why}", socket.display())));
            }
        }
    }
    let text = format!("process {pid} is no process of a guest; `nk guests` lists them");
    Err(Failure::new(1, text))
}
