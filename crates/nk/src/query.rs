//! `nk guests`, `nk flows`, `nk nsm ls` and `nk why`: asks every daemon that this user can reach.

use serde_json::Value;

use crate::Failure;
use crate::ask::{self, Engine, Whose};

mod why;

#[derive(Debug, clap::Args)]
pub(crate) struct From {
    #[command(flatten)]
    engine: Engine,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The lists of all daemons in one, and why some may be missing.
fn collect(from: &From, question: &str) -> (Vec<Value>, Result<(), Failure>) {
    let (answers, whole) = from.engine.all(|daemon| daemon.list(question));
    (answers.into_iter().flat_map(|(_, rows)| rows).collect(), whole)
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
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| ask::harmless(cell)).collect()).collect();
    for row in &rows {
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
    for row in &rows {
        line(row.iter().map(String::as_str).collect());
    }
}

pub(crate) fn guests(from: &From) -> Result<(), Failure> {
    let (rows, whole) = collect(from, "guests");
    if from.json {
        print_json(&Value::Array(rows))?;
        return whole;
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
    whole
}

pub(crate) fn flows(from: &From) -> Result<(), Failure> {
    let (rows, whole) = collect(from, "flows");
    if from.json {
        print_json(&Value::Array(rows))?;
        return whole;
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
    whole
}

pub(crate) fn nsms(from: &From) -> Result<(), Failure> {
    let (rows, whole) = collect(from, "nsms");
    if from.json {
        print_json(&Value::Array(rows))?;
        return whole;
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
    whole
}

pub(crate) fn why(from: &From, pid: i32) -> Result<(), Failure> {
    let question = format!("why {pid}");
    match from.engine.first(Whose::All, |daemon| daemon.question(&question))? {
        Some(v) if from.json => print_json(&v)?,
        Some(v) => why::print(&v),
        None => {
            let text = format!(
                "no guest that you may ask about has a process {pid}; `nk guests` lists them"
            );
            return Err(Failure::new(1, text));
        }
    }
    Ok(())
}
