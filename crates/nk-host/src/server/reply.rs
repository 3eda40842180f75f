//! What goes back to a requester.

use std::io;
use std::os::fd::OwnedFd;

use nk_attach::{Kind, Message};

use crate::control::members::Refused;

/// A reply, with the descriptors that go with it.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(super) message: Box<Message>,
    pub(super) fds: Vec<OwnedFd>,
}

impl From<Refused> for Reply {
    fn from(r: Refused) -> Reply {
        Reply::refused(r.errno, &r.why)
    }
}

impl Reply {
    pub(crate) fn ok(a: u64, b: u64, c: u64, d: u64) -> Reply {
        let mut message = Message::new(Kind::Query);
        (message.a, message.b, message.c, message.d) = (a, b, c, d);
        Reply { message: Box::new(message), fds: Vec::new() }
    }
    pub(crate) fn refused(errno: i32, why: &str) -> Reply {
        let mut message = Message::new(Kind::Query).with_text(why);
        message.status = errno;
        Reply { message: Box::new(message), fds: Vec::new() }
    }
    pub(crate) fn failed(what: &str, e: &io::Error) -> Reply {
        Refused::failed(what, e).into()
    }
    pub(crate) fn with_fds(mut self, fds: Vec<OwnedFd>) -> Reply {
        self.fds = fds;
        self
    }
}
