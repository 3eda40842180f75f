//! `nk metrics`: what `nk guests` and `nk nsm ls` tell, as OpenMetrics text for Prometheus; with `--http`, as the answer to one request on stdin, for
//! a socket unit of systemd (`Accept=yes`) or inetd. So nothing listens in the daemon, and nothing runs between two scrapes.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use serde_json::Value;

use crate::Failure;
use crate::ask::Engine;

/// Bytes of a request's head that are read at most.
const HEAD_MAX: usize = 8192;
const TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    engine: Engine,
    /// Read one HTTP request from standard input and answer it
    #[arg(long)]
    http: bool,
}

type Labels = Vec<(&'static str, String)>;

/// How a number of the daemon's becomes a metric.
#[derive(Clone, Copy, PartialEq, Eq)]
enum As {
    Gauge,
    Counter,
    Bytes,
    /// Milliseconds there, seconds here.
    Seconds,
}

/// A metric. What an NSM counted of a guest (`/nsm/…`) begins at 0 again when that NSM does, and is less by its part when the guest has left it. What an
/// NSM has sent and received is counted by itself and goes on, whichever of its guests or processes end.
///
/// It has a name, what it is, and where its values stand: label, value of the label, pointer into the daemon's JSON. An object there has a
/// value for each of its keys; an array counts as its length.
struct Metric {
    name: &'static str,
    help: &'static str,
    kind: As,
    from: &'static [(&'static str, &'static str, &'static str)],
}

const fn one(
    name: &'static str,
    help: &'static str,
    kind: As,
    from: &'static [(&'static str, &'static str, &'static str)],
) -> Metric {
    Metric { name, help, kind, from }
}

const GUEST: &[Metric] = &[
    one("processes", "Processes of the guest", As::Gauge, &[("", "", "/processes")]),
    one("sockets", "Sockets that the guest has", As::Gauge, &[("", "", "/engine/sockets")]),
    one(
        "connections_open",
        "Connections that are open",
        As::Gauge,
        &[("", "", "/engine/connections_open")],
    ),
    one(
        "connections",
        "Connections made and accepted",
        As::Counter,
        &[("", "", "/engine/connections_total")],
    ),
    one("sent", "Payload that the stack took", As::Bytes, &[("", "", "/engine/bytes_sent")]),
    one("received", "Payload that the guest got", As::Bytes, &[("", "", "/engine/bytes_received")]),
    one(
        "nqes",
        "Queue elements switched",
        As::Counter,
        &[("from", "op", "/engine/nqes_from_guest"), ("to", "op", "/engine/nqes_to_guest")],
    ),
    one(
        "held",
        "Times that a limit made something wait",
        As::Counter,
        &[
            ("limit", "out", "/nsm/out_held"),
            ("limit", "in", "/nsm/in_held"),
            ("limit", "nqes", "/engine/nqes_held"),
            ("limit", "connects", "/engine/connects_held"),
            ("limit", "accepts", "/engine/accepts_held"),
        ],
    ),
    one(
        "held_for",
        "Time in which some socket waited for a limit of bytes",
        As::Seconds,
        &[("limit", "out", "/nsm/out_held_ms"), ("limit", "in", "/nsm/in_held_ms")],
    ),
    one(
        "refused",
        "What was refused",
        As::Counter,
        &[
            ("what", "port", "/engine/ports_refused"),
            ("what", "listen", "/engine/listens_refused"),
            ("what", "datagram", "/nsm/datagrams_refused"),
            ("what", "accept", "/nsm/accept_failures"),
        ],
    ),
    one(
        "datagrams_dropped",
        "Datagrams that the stack dropped because nobody read",
        As::Counter,
        &[("", "", "/nsm/datagrams_dropped")],
    ),
    one(
        "violations",
        "Elements and descriptors that broke the protocol",
        As::Counter,
        &[("by", "engine", "/engine/violations"), ("by", "nsm", "/nsm/violations")],
    ),
    one(
        "chunks",
        "Chunks of the pool",
        As::Gauge,
        &[
            ("state", "free", "/nsm/chunks_free"),
            ("state", "leased", "/nsm/chunks_leased"),
            ("state", "sending", "/nsm/chunks_tx"),
            ("state", "received", "/nsm/chunks_rx"),
        ],
    ),
    one(
        "names",
        "Questions about names",
        As::Counter,
        &[
            ("result", "answered", "/names/answered"),
            ("result", "refused", "/names/refused"),
            ("result", "malformed", "/names/malformed"),
            ("result", "try_again", "/names/try_again"),
        ],
    ),
];

const NSM: &[Metric] = &[
    one("restarts", "Times that it was started again", As::Counter, &[("", "", "/restarts")]),
    one("guests", "Guests whose new sockets are its", As::Gauge, &[("", "", "/guests")]),
    one("sockets", "Sockets that it serves", As::Gauge, &[("", "", "/sockets")]),
    one("sent", "Payload that its stack took", As::Bytes, &[("", "", "/bytes_sent")]),
    one("received", "Payload that its stack gave", As::Bytes, &[("", "", "/bytes_received")]),
    one(
        "violations",
        "Elements from it that broke the protocol",
        As::Counter,
        &[("", "", "/violations")],
    ),
];

pub(crate) fn metrics(options: &Options) -> Result<(), Failure> {
    if options.http {
        return answer(&options.engine);
    }
    let (told, whole) = scrape(&options.engine);
    std::io::stdout().write_all(render(&told)?.as_bytes())?;
    whole
}

/// One request from standard input, its answer to standard output.
fn answer(engine: &Engine) -> Result<(), Failure> {
    let request = head(&mut std::io::stdin().lock())?;
    let mut words = request.split(' ');
    let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let path = target.split('?').next().unwrap_or("");
    let (status, kind, body) = match (method, path) {
        ("GET" | "HEAD", "/metrics") => match scrape(engine) {
            (told, Err(why)) if told.is_empty() => {
                ("503 Service Unavailable", "text/plain", format!("{}\n", why.text))
            }
            (told, _) => ("200 OK", TYPE, render(&told)?),
        },
        ("GET" | "HEAD", _) => ("404 Not Found", "text/plain", "here is /metrics\n".to_owned()),
        _ => ("405 Method Not Allowed", "text/plain", "GET /metrics\n".to_owned()),
    };
    let length = body.len();
    let body = if method == "HEAD" { "" } else { &body };
    let mut out = std::io::stdout().lock();
    write!(
        out,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )?;
    out.flush()?;
    Ok(())
}

/// The first line of a request, once its head has been read: a client whose request is not read to its end may lose the answer.
fn head(from: &mut impl Read) -> Result<String, Failure> {
    let mut seen = Vec::new();
    let mut byte = [0];
    while !seen.ends_with(b"\r\n\r\n") && !seen.ends_with(b"\n\n") {
        if from.read(&mut byte)? == 0 || seen.len() == HEAD_MAX {
            return Err(Failure::new(1, "standard input gave no HTTP request"));
        }
        seen.extend_from_slice(&byte);
    }
    let text = String::from_utf8_lossy(&seen);
    Ok(text.lines().next().unwrap_or("").to_owned())
}

/// A daemon's socket, its guests, its NSMs.
type Told = (PathBuf, (Vec<Value>, Vec<Value>));
/// What a daemon says of a guest or an NSM, with the labels that tell it from others.
type Row<'a> = (Labels, &'a Value);

fn scrape(engine: &Engine) -> (Vec<Told>, Result<(), Failure>) {
    engine.all(|daemon| Ok((daemon.list("guests")?, daemon.list("nsms")?)))
}

fn label(v: &Value, key: &str) -> String {
    match v.pointer(key) {
        Some(Value::String(s)) => s.clone(),
        Some(v) if !v.is_null() => v.to_string(),
        _ => String::new(),
    }
}

/// The text, from the daemons' lists.
fn render(told: &[Told]) -> Result<String, Failure> {
    let (mut guests, mut nsms): (Vec<Row<'_>>, Vec<Row<'_>>) = Default::default();
    for (socket, (its_guests, its_nsms)) in told {
        let of = || ("daemon", socket.display().to_string());
        // A guest's name need not be the only one of its kind, and none need have one.
        let guest = |g| (vec![of(), ("guest", label(g, "/name")), ("id", label(g, "/id"))], g);
        guests.extend(its_guests.iter().map(guest));
        nsms.extend(its_nsms.iter().map(|n| (vec![of(), ("nsm", label(n, "/name"))], n)));
    }

    let mut registry = Registry::with_prefix("netkernel");
    let info = Family::<Labels, Gauge>::default();
    for (labels, g) in &guests {
        let more = [("uid", "/uid"), ("nsm", "/nsm_name"), ("network", "/network/name")];
        let more = more.map(|(name, at)| (name, label(g, at)));
        info.get_or_create(&[&labels[..], &more].concat()).set(1);
    }
    registry.register("guest_info", "Whose it is, and what serves it", info);
    let up = Family::<Labels, Gauge>::default();
    for (labels, n) in &nsms {
        up.get_or_create(labels).set(i64::from(label(n, "/state") == "up"));
    }
    registry.register("nsm_up", "Whether it serves: 0 while it is started again", up);
    for metric in GUEST {
        metric.register(&mut registry, "guest", &guests);
    }
    for metric in NSM {
        metric.register(&mut registry, "nsm", &nsms);
    }
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

impl Metric {
    fn register(&self, registry: &mut Registry, of: &str, rows: &[Row<'_>]) {
        let values = rows.iter().flat_map(|(labels, row)| {
            self.values(row).into_iter().map(|(more, n)| ([&labels[..], &more].concat(), n))
        });
        let name = format!("{of}_{}", self.name);
        match self.kind {
            As::Gauge => {
                let family = Family::<Labels, Gauge>::default();
                values.for_each(|(labels, n)| {
                    family.get_or_create(&labels).set(i64::try_from(n).unwrap_or(i64::MAX));
                });
                registry.register(name, self.help, family);
            }
            As::Counter | As::Bytes => {
                let family = Family::<Labels, Counter>::default();
                values.for_each(|(labels, n)| {
                    family.get_or_create(&labels).inc_by(n);
                });
                if self.kind == As::Bytes {
                    registry.register_with_unit(name, self.help, Unit::Bytes, family);
                } else {
                    registry.register(name, self.help, family);
                }
            }
            As::Seconds => {
                let family = Family::<Labels, Counter<f64, AtomicU64>>::default();
                values.for_each(|(labels, n)| {
                    family.get_or_create(&labels).inc_by(n as f64 / 1e3);
                });
                registry.register_with_unit(name, self.help, Unit::Seconds, family);
            }
        }
    }

    /// Its values in a row of the daemon's, with the labels that tell them apart.
    fn values(&self, row: &Value) -> Vec<(Labels, u64)> {
        let mut values = Vec::new();
        for (name, label, at) in self.from {
            let own = |name: &'static str, value: &str| match name {
                "" => Vec::new(),
                _ => vec![(name, value.to_owned())],
            };
            match row.pointer(at) {
                Some(Value::Object(by_key)) => {
                    let each = by_key.iter().filter_map(|(key, n)| Some((key, n.as_u64()?)));
                    values.extend(each.map(|(key, n)| {
                        (vec![("direction", (*name).to_owned()), (*label, key.clone())], n)
                    }));
                }
                Some(Value::Array(all)) => values.push((own(name, label), all.len() as u64)),
                // An NSM that is being started again tells nothing: no value is not zero.
                value => {
                    values.extend(value.and_then(Value::as_u64).map(|n| (own(name, label), n)))
                }
            }
        }
        values
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn guest() -> Value {
        json!({"id": 3, "name": "a \"b\"", "uid": 0, "nsm_name": "web", "network": {"name": "host"},
            "processes": [{"pid": 1}, {"pid": 2}],
            "engine": {"bytes_sent": 70, "nqes_from_guest": {"Send": 4, "Close": 1}, "nqes_held": 2},
            "nsm": {"out_held_ms": 1500}})
    }

    #[test]
    fn what_the_daemon_says_becomes_text() {
        let nsms = json!([{"name": "web", "state": "up", "restarts": 2, "guests": 1, "bytes_sent": 5},
            {"name": "rest", "state": "restarting", "restarts": 9}]);
        let nsms = nsms.as_array().expect("a list").clone();
        let other = (PathBuf::from("/other"), (vec![guest()], Vec::new()));
        let told = [(PathBuf::from("/d"), (vec![guest()], nsms)), other];
        let text = render(&told).map_err(|f| f.text).unwrap();
        for line in [
            r#"netkernel_guest_info{daemon="/d",guest="a \"b\"",id="3",uid="0",nsm="web",network="host"} 1"#,
            r#"netkernel_guest_processes{daemon="/d",guest="a \"b\"",id="3"} 2"#,
            r#"netkernel_guest_sent_bytes_total{daemon="/d",guest="a \"b\"",id="3"} 70"#,
            r#"netkernel_guest_sent_bytes_total{daemon="/other",guest="a \"b\"",id="3"} 70"#,
            r#"netkernel_guest_nqes_total{daemon="/d",guest="a \"b\"",id="3",direction="from",op="Send"} 4"#,
            r#"netkernel_guest_held_total{daemon="/d",guest="a \"b\"",id="3",limit="nqes"} 2"#,
            r#"netkernel_guest_held_for_seconds_total{daemon="/d",guest="a \"b\"",id="3",limit="out"} 1.5"#,
            r#"netkernel_nsm_up{daemon="/d",nsm="web"} 1"#,
            r#"netkernel_nsm_up{daemon="/d",nsm="rest"} 0"#,
            r#"netkernel_nsm_sent_bytes_total{daemon="/d",nsm="web"} 5"#,
            r#"netkernel_nsm_restarts_total{daemon="/d",nsm="rest"} 9"#,
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in:\n{text}");
        }
        // What was not told is not there.
        assert!(!text.contains("netkernel_guest_chunks{"), "{text}");
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn heads_of_requests() {
        let line = |mut text: &[u8]| head(&mut text).map_err(|_| ());
        assert_eq!(
            line(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n").unwrap(),
            "GET /metrics HTTP/1.1"
        );
        assert_eq!(line(b"GET /\n\n").unwrap(), "GET /");
        assert!(line(b"GET / HTTP/1.1\r\nHost").is_err());
        assert!(line(&[b'x'; HEAD_MAX + 9]).is_err());
    }
}
