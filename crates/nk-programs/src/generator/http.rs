//! An HTTP load that costs little and waits for nobody: open loop by the clock, or closed loop.
//!
//! Open loop: request k is due at k / rate whatever became of those before it, and its latency counts from then, so that a server
//! that stalls is charged for all that it made wait (no coordinated omission). A request takes the connection that has been idle
//! for the shortest time; with none idle it waits, and the wait counts.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};

use super::answer::Answers;

/// How long requests may take after the last was due.
const GRACE: Duration = Duration::from_secs(5);

/// What to do.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// On 127.0.0.1.
    pub port: u16,
    /// Connections at a time, of each thread.
    pub connections: usize,
    /// How long.
    pub time: Duration,
    /// Requests per second of each thread; none: as fast as answers come.
    pub rate: Option<f64>,
    /// One connection per request.
    pub short: bool,
    /// Of how many threads this is which: their requests come in turn.
    pub turn: (u32, u32),
}

/// What became of it.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Latency of each answered request, in nanoseconds.
    pub latencies_ns: Vec<u64>,
    /// Requests that were due and had no answer in time, or a wrong one.
    pub failed: u64,
    /// From the start to the last answer.
    pub took: Duration,
}

#[derive(Debug, Default)]
struct Connection {
    fd: Option<OwnedFd>,
    /// When its request was due; none while it has none.
    due: Option<Duration>,
    /// The request is not written yet: the connection is being made.
    unsent: bool,
    answer: Vec<u8>,
}

/// One thread's load.
#[derive(Debug)]
pub struct Generator {
    load: Load,
    epoll: OwnedFd,
    connections: Vec<Connection>,
    idle: Vec<usize>,
    answers: Answers,
    request: &'static [u8],
    outcome: Outcome,
}

impl Generator {
    /// Ready to run; kept connections are made, and have been used once.
    pub fn new(load: Load) -> Result<Self> {
        let request: &[u8] = if load.short {
            b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        } else {
            b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
        };
        let mut generator = Generator {
            load,
            epoll: epoll::create(CreateFlags::CLOEXEC).context("epoll")?,
            connections: (0..load.connections).map(|_| Connection::default()).collect(),
            idle: (0..load.connections).collect(),
            answers: Answers::default(),
            request,
            outcome: Outcome::default(),
        };
        if !load.short {
            let begun = Instant::now();
            while let Some(which) = generator.idle.pop() {
                generator.begin(which, begun.elapsed())?;
            }
            while generator.idle.len() < load.connections {
                ensure!(begun.elapsed() < GRACE, "the server does not answer");
                ensure!(generator.outcome.failed == 0, "the first request of a connection failed");
                generator.wait(begun, Some(Duration::from_millis(100)))?;
            }
            generator.outcome = Outcome::default();
        }
        Ok(generator)
    }

    /// Runs the load.
    pub fn run(mut self) -> Result<Outcome> {
        let begun = Instant::now();
        let mut issued = 0u64;
        loop {
            let mut now = begun.elapsed();
            while let Some(due) = self.due(issued, now)
                && due <= now
                && let Some(which) = self.idle.pop()
            {
                self.begin(which, due)?;
                issued += 1;
                now = begun.elapsed();
            }
            let next = self.due(issued, now);
            if next.is_none() && self.idle.len() == self.connections.len() {
                break;
            }
            if now > self.load.time + GRACE {
                let open = self.connections.iter().filter(|c| c.due.is_some()).count();
                self.outcome.failed += open as u64;
                break;
            }
            // With a connection free until the next is due; else until an answer comes.
            let limit = match next {
                Some(due) if !self.idle.is_empty() => due.saturating_sub(now),
                _ => Duration::from_millis(100),
            };
            self.wait(begun, Some(limit))?;
        }
        // What was due and found no connection in all that time.
        let now = begun.elapsed();
        while self.load.rate.is_some() && self.due(issued, now).is_some() {
            issued += 1;
            self.outcome.failed += 1;
        }
        self.outcome.took = now;
        Ok(self.outcome)
    }

    /// When request `index` is due; none after the end.
    fn due(&self, index: u64, now: Duration) -> Option<Duration> {
        let due = match self.load.rate {
            Some(rate) => {
                let (which, of) = self.load.turn;
                Duration::from_secs_f64((index as f64 + f64::from(which) / f64::from(of)) / rate)
            }
            None => now,
        };
        (due < self.load.time).then_some(due)
    }

    fn begin(&mut self, which: usize, due: Duration) -> Result<()> {
        let connection = self.connections.get_mut(which).context("no such connection")?;
        connection.due = Some(due);
        connection.answer.clear();
        connection.unsent = connection.fd.is_none();
        if connection.fd.is_none() {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let fd = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
            let to = SocketAddrV4::new(Ipv4Addr::LOCALHOST, self.load.port);
            match connect(&fd, &to) {
                Ok(()) | Err(Errno::INPROGRESS) => {}
                Err(error) => return Err(error).context("connect"),
            }
            let events = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
            epoll::add(&self.epoll, &fd, EventData::new_u64(which as u64), events)?;
            connection.fd = Some(fd);
            return Ok(());
        }
        self.send(which)
    }

    fn send(&mut self, which: usize) -> Result<()> {
        let connection = self.connections.get_mut(which).context("no such connection")?;
        let fd = connection.fd.as_ref().context("a request without a connection")?;
        connection.unsent = false;
        match rustix::io::write(fd, self.request) {
            Ok(n) if n == self.request.len() => Ok(()),
            Ok(n) => bail!("only {n} bytes of a request were taken"),
            Err(_) => {
                self.end(which, false);
                Ok(())
            }
        }
    }

    fn wait(&mut self, begun: Instant, limit: Option<Duration>) -> Result<()> {
        let limit = limit.map(rustix::event::Timespec::try_from).transpose()?;
        let mut events: Vec<Event> = Vec::with_capacity(64);
        let room = rustix::buffer::spare_capacity(&mut events);
        match epoll::wait(&self.epoll, room, limit.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("epoll_wait"),
        }
        for event in events {
            self.react(event.data.u64() as usize, event.flags, begun)?;
        }
        Ok(())
    }

    fn react(&mut self, which: usize, flags: EventFlags, begun: Instant) -> Result<()> {
        let Some(connection) = self.connections.get_mut(which) else { return Ok(()) };
        if connection.unsent && flags.contains(EventFlags::OUT) {
            self.send(which)?;
        }
        if !flags.intersects(EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR)
        {
            return Ok(());
        }
        loop {
            let Some(connection) = self.connections.get_mut(which) else { return Ok(()) };
            let Some(fd) = &connection.fd else { return Ok(()) };
            let mut buffer = [0; 4096];
            match rustix::io::read(fd, &mut buffer) {
                Ok(0) => {
                    let good = self.load.short
                        && connection.due.is_some()
                        && self.answers.is_whole(&connection.answer);
                    self.finish(which, begun, good);
                    return Ok(());
                }
                Ok(n) => {
                    connection.answer.extend_from_slice(buffer.get(..n).unwrap_or_default());
                    if !self.load.short && self.answers.is_whole(&connection.answer) {
                        self.finish(which, begun, true);
                        return Ok(());
                    }
                    // Less than asked for: what comes later is another edge. An end of file needs one more look.
                    if n < buffer.len() && !flags.contains(EventFlags::RDHUP) {
                        return Ok(());
                    }
                }
                Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
                Err(_) => {
                    self.finish(which, begun, false);
                    return Ok(());
                }
            }
        }
    }

    fn finish(&mut self, which: usize, begun: Instant, good: bool) {
        let due = self.connections.get(which).and_then(|c| c.due);
        if let (true, Some(due)) = (good, due) {
            let latency = begun.elapsed().saturating_sub(due);
            self.outcome.latencies_ns.push(latency.as_nanos() as u64);
        }
        self.end(which, good);
    }

    /// The connection is free for the next request.
    fn end(&mut self, which: usize, good: bool) {
        let Some(connection) = self.connections.get_mut(which) else { return };
        if connection.due.take().is_none() && !good {
            // The server closed a connection that had nothing to do: the next request makes a new one.
            connection.fd = None;
            return;
        }
        self.outcome.failed += u64::from(!good);
        if self.load.short || !good {
            connection.fd = None;
        }
        self.idle.push(which);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// Answers each request; the first of all only after a while.
    fn server(status: &'static str, first_takes: Duration) -> u16 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
        let port = listener.local_addr().expect("address").port();
        std::thread::spawn(move || {
            let mut takes = first_takes;
            for stream in listener.incoming().flatten() {
                let takes = std::mem::take(&mut takes);
                std::thread::spawn(move || serve(stream, status, takes));
            }
        });
        port
    }

    fn serve(mut stream: TcpStream, status: &str, mut takes: Duration) -> Option<()> {
        let reader = BufReader::new(stream.try_clone().ok()?);
        let mut close = false;
        for line in reader.lines() {
            let line = line.ok()?;
            close |= line == "Connection: close";
            if line.is_empty() {
                std::thread::sleep(std::mem::take(&mut takes));
                let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nok");
                stream.write_all(answer.as_bytes()).ok()?;
                if close {
                    return None;
                }
            }
        }
        None
    }

    fn load(port: u16, connections: usize, rate: Option<f64>, short: bool) -> Load {
        Load { port, connections, time: Duration::from_millis(200), rate, short, turn: (0, 1) }
    }

    #[test]
    fn an_open_loop_asks_as_often_as_it_is_told() {
        for short in [false, true] {
            let port = server("200 OK", Duration::ZERO);
            let outcome = Generator::new(load(port, 4, Some(200.0), short)).unwrap().run().unwrap();
            assert_eq!((outcome.latencies_ns.len(), outcome.failed), (40, 0), "short: {short}");
        }
    }

    #[test]
    fn who_waits_for_a_stalled_server_is_counted_from_when_it_was_due() {
        let stall = Duration::from_millis(100);
        let port = server("200 OK", stall);
        // One connection and short, so that the first request holds up those of the next 100 ms.
        let outcome = Generator::new(load(port, 1, Some(100.0), true)).unwrap().run().unwrap();
        assert_eq!((outcome.latencies_ns.len(), outcome.failed), (20, 0));
        let late = outcome.latencies_ns.iter().filter(|ns| **ns > 45_000_000).count();
        assert!(late >= 5, "the first six were due while the server stalled: {late}");
    }

    #[test]
    fn a_closed_loop_goes_on_until_the_end() {
        let port = server("200 OK", Duration::ZERO);
        let outcome = Generator::new(load(port, 2, None, true)).unwrap().run().unwrap();
        assert!(outcome.latencies_ns.len() > 2 && outcome.failed == 0, "{outcome:?}");
    }

    #[test]
    fn a_bad_status_is_a_failure() {
        let port = server("500 No", Duration::ZERO);
        let outcome = Generator::new(load(port, 2, Some(100.0), true)).unwrap().run().unwrap();
        assert_eq!((outcome.latencies_ns.len(), outcome.failed), (0, 20));
    }
}
