//! What is there: the answers to `nk guests`, `nk flows` and `nk why`, as JSON in a memfd.

use std::io;

use nk_attach::{Credentials, Message};
use nk_device::cell;
use nk_device::sync::Ordering;
use nk_engine::{Flow, GuestId, NsmId, Stats};
use nk_servicelib::GuestStats;
use serde_json::{Value, json};

use super::create::is_operator;
use super::nsm::Nsm;
use super::{Reply, Server};
use crate::guest::Guest;
use crate::sys;

impl Server {
    pub(super) fn query(
        &mut self,
        message: &Message,
        credentials: Option<Credentials>,
    ) -> io::Result<Reply> {
        let Some(who) = credentials else {
            return Ok(Reply::refused(libc::EACCES, "the daemon cannot see who asks"));
        };
        let mut words = message.text().unwrap_or("").split_ascii_whitespace();
        let answer = match (words.next(), words.next()) {
            (Some("guests"), None) => self.describe_guests(who)?,
            (Some("flows"), None) => self.describe_flows(who)?,
            (Some("nsms"), None) => self.describe_nsms(who)?,
            (Some("why"), Some(pid)) => match pid.parse().ok().and_then(|p| self.why(who, p)) {
                Some(v) => v,
                None => {
                    let why = format!("process {pid} is not a guest's process here");
                    return Ok(Reply::refused(libc::ESRCH, &why));
                }
            },
            _ => {
                return Ok(Reply::refused(
                    libc::EINVAL,
                    "the questions are: guests, flows, nsms, why PID",
                ));
            }
        };
        let text = answer.to_string();
        Ok(match sys::memfd_with(text.as_bytes()) {
            Ok(fd) => Reply::ok(text.len() as u64, 0, 0, 0).with_fds(vec![fd]),
            Err(e) => Reply::failed("no memory for the answer", &e),
        })
    }

    /// A user sees its own guests, root and the daemon's user all of them.
    fn visible(&self, who: Credentials) -> Vec<GuestId> {
        let all = is_operator(who);
        self.guests.values().filter(|g| all || g.members.uid == who.uid).map(|g| g.id).collect()
    }

    fn describe_guests(&mut self, who: Credentials) -> io::Result<Value> {
        let ids = self.visible(who);
        let asked = ids.clone();
        let stats = self.ask(move |s| {
            let service = |id: GuestId| s.service.as_ref().and_then(|v| v.stats(id.0));
            let engine = |id: GuestId| (s.engine.stats(Some(id)), s.engine.sockets_by_nsm(id));
            asked.iter().map(|id| (engine(*id), service(*id))).collect::<Vec<_>>()
        })?;
        let mut networks = super::networks::Described::default();
        let guests = ids.iter().zip(stats).filter_map(|(id, ((engine, served), service))| {
            let nsms = self.guests.get(&id.0)?.place.all();
            // The present one's word of what they share counts.
            let parts: Vec<GuestStats> = nsms
                .iter()
                .filter_map(|n| {
                    let inline = self.nsm(*n).is_some_and(Nsm::is_inline);
                    if inline { service } else { self.nsm_stats(*n, *id) }
                })
                .collect();
            let service = parts.into_iter().reduce(|sum, more| sum.with(&more));
            let g = self.guests.get(&id.0)?;
            let mut v = describe_guest(g, &engine);
            if let (Some(map), Some(nsm)) = (v.as_object_mut(), self.nsm(g.place.nsm())) {
                map.insert("network".into(), networks.of(g));
                map.insert("nsm_name".into(), json!(nsm.name));
                if let Some(pid) = nsm.pid() {
                    map.insert("nsm_pid".into(), json!(pid));
                }
                let of = |(nsm, sockets): &(NsmId, u32)| {
                    Some((self.nsm(*nsm)?.name.clone(), json!(sockets)))
                };
                map.insert(
                    "nsm_sockets".into(),
                    Value::Object(served.iter().filter_map(of).collect()),
                );
            }
            if let (Some(map), Some(s)) = (v.as_object_mut(), service) {
                map.insert(
                    "nsm".into(),
                    json!({
                        "sockets": s.sockets, "orphans": s.orphans,
                        "chunks_free": s.chunks_free, "chunks_leased": s.chunks_leased,
                        "chunks_tx": s.chunks_tx, "chunks_rx": s.chunks_rx,
                        "bytes_sent": s.bytes_sent, "bytes_received": s.bytes_received,
                        "violations": s.violations, "accept_failures": s.accept_failures,
                        "datagrams_refused": s.datagrams_refused,
                        "datagrams_dropped": s.datagrams_dropped,
                        "out_held": s.out_held, "out_held_ms": s.out_held_ms,
                        "in_held": s.in_held, "in_held_ms": s.in_held_ms,
                    }),
                );
            }
            Some(v)
        });
        Ok(Value::Array(guests.collect()))
    }

    fn describe_flows(&self, who: Credentials) -> io::Result<Value> {
        let ids = self.visible(who);
        let flows = self.ask(move |s| {
            ids.iter().flat_map(|id| s.engine.flows(Some(*id))).collect::<Vec<_>>()
        })?;
        let rows = flows.iter().filter_map(|f| {
            let mut row = describe_flow(self.guests.get(&f.guest.0)?, f);
            if let (Some(map), Some(nsm)) = (row.as_object_mut(), self.nsm(f.nsm)) {
                map.insert("nsm".into(), json!(nsm.name));
            }
            Some(row)
        });
        Ok(Value::Array(rows.collect()))
    }

    fn describe_nsms(&self, who: Credentials) -> io::Result<Value> {
        let guests: Vec<(GuestId, NsmId)> =
            self.guests.values().map(|g| (g.id, g.place.nsm())).collect();
        let asked: Vec<GuestId> = guests.iter().map(|(id, _)| *id).collect();
        let served = self.ask(move |s| {
            asked.into_iter().flat_map(|g| s.engine.sockets_by_nsm(g)).collect::<Vec<_>>()
        })?;
        let visible = self.visible(who);
        let describe = |n: &Nsm| {
            let its = served.iter().filter(|(id, _)| *id == n.id);
            let sockets: u64 = its.map(|(_, sockets)| u64::from(*sockets)).sum();
            let named = |is_its: &dyn Fn(&Guest) -> bool| -> Vec<&str> {
                let guests = visible.iter().filter_map(|id| self.guests.get(&id.0));
                guests.filter(|g| is_its(g)).map(|g| g.name.as_str()).collect()
            };
            let names = named(&|g| g.place.nsm() == n.id);
            // What it still has of these is finishing there.
            let moved = named(&|g| g.place.was_on(n.id));
            json!({
                "name": n.name,
                "stack": "kernel",
                "io": n.config.io.name(),
                "placement": if n.is_inline() { "inline" } else { "process" },
                "pid": if n.is_inline() { i32::try_from(std::process::id()).ok() } else { n.pid() },
                "state": if n.is_up() { "up" } else { "restarting" },
                "restarts": n.counts.restarts,
                "violations": n.counts.violations,
                "cores": n.config.core_numbers(),
                "default": n.config.default,
                "guests": guests.iter().filter(|(_, nsm)| *nsm == n.id).count(),
                "guest_names": names,
                "moved_guests": moved,
                "sockets": sockets,
                "bytes_sent": n.totals.shared.bytes_sent.get(),
                "bytes_received": n.totals.shared.bytes_received.get(),
            })
        };
        Ok(Value::Array(self.nsms.iter().map(describe).collect()))
    }

    fn why(&self, who: Credentials, pid: i32) -> Option<Value> {
        let ids = self.visible(who);
        let (guest, row) = ids.iter().find_map(|id| {
            let g = self.guests.get(&id.0)?;
            Some((g, g.members.row_of(pid)?))
        })?;
        let missed: Vec<Value> = guest
            .all_missed()
            .iter()
            .map(|(key, count)| {
                json!({"kind": *key >> 56, "detail": *key & ((1 << 56) - 1), "count": count})
            })
            .collect();
        Some(json!({"guest": guest.name, "pid": pid, "row": row, "missed": missed}))
    }
}

fn operations(counts: &[u64; 256]) -> Value {
    let named = counts.iter().enumerate().filter(|(_, n)| **n > 0).map(|(op, n)| {
        let name = u8::try_from(op)
            .ok()
            .and_then(nk_device::Op::from_u8)
            .map_or_else(|| op.to_string(), |o| format!("{o:?}"));
        (name, json!(n))
    });
    Value::Object(named.collect())
}

fn describe_guest(g: &Guest, s: &Stats) -> Value {
    let processes: Vec<Value> = g
        .members
        .processes
        .iter()
        .map(|(row, p)| json!({"row": row, "pid": p.pid, "queue_sets": p.qsets}))
        .collect();
    json!({
        "id": g.id.0,
        "name": g.name,
        "uid": g.members.uid,
        "namespace": g.namespace,
        "share_net": g.flags & nk_attach::CREATE_SHARE_NET != 0,
        "limits": g.limits.to_json(),
        "processes": processes,
        "holds": g.members.holds.len(),
        "names": super::names::describe(g),
        "engine": {
            "nqes_from_guest": operations(&s.from_guest),
            "nqes_to_guest": operations(&s.to_guest),
            "bytes_sent": s.bytes_sent,
            "bytes_received": s.bytes_received,
            "connections_open": s.connections_open,
            "connections_total": s.connections_total,
            "sockets": s.sockets,
            "ids_granted": s.ids_granted,
            "rows": s.rows,
            "queue_sets": s.qsets,
            "violations": s.violations,
            "stale": s.stale,
            "quarantined": s.quarantined,
            "ports_refused": s.ports_refused,
            "overflows": s.overflows,
            "listens_refused": s.listens_refused,
            "nqes_held": s.nqes_held,
            "connects_held": s.connects_held,
            "accepts_held": s.accepts_held,
        },
    })
}

/// The state as ss names it.
fn state_name(f: &Flow) -> &'static str {
    let has = |bit: u32| f.state & bit != 0;
    if f.closing && !f.datagram {
        "CLOSING"
    } else if has(cell::SF_LISTENING) {
        "LISTEN"
    } else if has(cell::SF_DEAD) || has(cell::SF_FAILED) {
        "UNCONN"
    } else if has(cell::SF_CONNECTED) && has(cell::SF_EOF) {
        "CLOSE-WAIT"
    } else if has(cell::SF_CONNECTED) {
        "ESTAB"
    } else if has(cell::SF_CONNECTING) {
        "SYN-SENT"
    } else {
        "UNCONN"
    }
}

fn address(a: &nk_device::Addr) -> String {
    use std::net::{Ipv4Addr, Ipv6Addr};
    match a.family {
        nk_device::addr::AF_INET => {
            let [w, x, y, z, ..] = a.ip;
            format!("{}:{}", Ipv4Addr::new(w, x, y, z), a.port)
        }
        nk_device::addr::AF_INET6 => format!("[{}]:{}", Ipv6Addr::from(a.ip), a.port),
        _ => "*:*".to_owned(),
    }
}

/// Datagrams that are looked at on a ring: GuestLib puts fewer there, others may have put anything.
const DATAGRAMS_MAX: usize = 2048;

/// Bytes (or, on a listener, connections) that wait in a ring of the cell: information, from words that the guest can write.
fn waiting(g: &Guest, f: &Flow) -> (u64, u64) {
    let Some(c) = g.region.device.cell(f.socket) else { return (0, 0) };
    let slots = nk_device::STREAM_SLOTS as u32;
    let span = |slots: &[nk_device::sync::AtomicU64], from: u32, to: u32| -> u64 {
        let spans = (0..to.wrapping_sub(from))
            .filter_map(|i| nk_device::stream::read_slot(slots, from.wrapping_add(i)))
            .filter_map(nk_device::stream::Span::from_payload);
        if f.datagram {
            let headers = spans.flat_map(|s| g.region.device.headers_of(s));
            return headers.take(DATAGRAMS_MAX).map(|h| u64::from(h.len)).sum();
        }
        spans.map(|s| u64::from(s.len)).sum()
    };
    let position = c.position();
    let rx = c.rx_tail.load(Ordering::Relaxed).wrapping_sub(position.index).min(slots);
    let recv = if f.state & cell::SF_LISTENING != 0 {
        u64::from(rx)
    } else {
        span(&c.rx_slots, position.index, position.index.wrapping_add(rx))
            .saturating_sub(u64::from(position.offset))
    };
    let head = c.tx_head.load(Ordering::Relaxed);
    let tx = c.tx_tail.load(Ordering::Relaxed).wrapping_sub(head).min(slots);
    (recv, span(&c.tx_slots, head, head.wrapping_add(tx)))
}

fn describe_flow(g: &Guest, f: &Flow) -> Value {
    let (recv_q, send_q) = waiting(g, f);
    let pids: Vec<u32> = f.holders.iter().map(|h| h.1).filter(|p| *p != 0).collect();
    json!({
        "guest": g.name,
        "socket": f.socket,
        "generation": f.generation,
        "protocol": if f.datagram { "udp" } else { "tcp" },
        "state": state_name(f),
        "recv_q": recv_q,
        "send_q": send_q,
        "local": address(&f.local),
        "peer": address(&f.peer),
        "pids": pids,
        "queued": f.queued,
        "bytes_sent": f.bytes.0,
        "bytes_received": f.bytes.1,
    })
}
