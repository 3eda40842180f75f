//! An NSM as the configuration has it.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::Spanned;

use super::{Wrong, is_name};

/// NSMs at once.
pub const NSMS_MAX: usize = 64;
/// Letters of an NSM's name.
const NAME_MAX: usize = 32;

/// One NSM.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NsmConfig {
    /// What it is.
    #[serde(default)]
    pub stack: StackName,
    /// Where it runs.
    #[serde(default)]
    pub placement: Placement,
    /// How it calls the kernel.
    #[serde(default)]
    pub io: Io,
    /// The CPUs on which its threads may run; all where none is named.
    #[serde(default)]
    pub cores: Vec<Spanned<usize>>,
    /// Whether guests that name no NSM may be given to it.
    #[serde(default)]
    pub default: bool,
    /// See [`NsmConfig::grace_s`].
    pub grace_s: Option<u32>,
}

/// How long an NSM process goes on without a daemon where nothing is said.
const GRACE_S: u32 = 60;

impl NsmConfig {
    /// For how many seconds its process goes on without a daemon.
    #[must_use]
    pub fn grace_s(&self) -> u32 {
        self.grace_s.unwrap_or(GRACE_S)
    }

    /// Numbers of its CPUs.
    #[must_use]
    pub fn core_numbers(&self) -> Vec<usize> {
        self.cores.iter().map(|c| *c.get_ref()).collect()
    }
}

/// A stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StackName {
    /// The host kernel's.
    #[default]
    Kernel,
}

/// How the kernel-stack NSM calls the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Io {
    /// With io_uring where it can be used.
    #[default]
    Auto,
    /// Without io_uring.
    Epoll,
    /// With io_uring, or not at all.
    IoUring,
}

impl Io {
    /// As the configuration has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Io::Auto => "auto",
            Io::Epoll => "epoll",
            Io::IoUring => "io_uring",
        }
    }
    /// As a word of a message.
    #[must_use]
    pub fn to_word(self) -> u64 {
        self as u64
    }
    /// Undoes [`Io::to_word`].
    #[must_use]
    pub fn from_word(word: u64) -> Io {
        [Io::Epoll, Io::IoUring].into_iter().find(|io| io.to_word() == word).unwrap_or_default()
    }
}

/// Where an NSM runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Placement {
    /// In the daemon's poll thread.
    #[default]
    Inline,
    /// In a process of its own.
    Process,
}

/// Whether these NSMs can all be had on this machine.
pub(super) fn check(nsms: &BTreeMap<String, NsmConfig>) -> Result<(), Wrong> {
    let cores = crate::sys::cores_online();
    let mut inline = None;
    if nsms.len() > NSMS_MAX {
        return Err(Wrong::new(format!("nsm: {NSMS_MAX} at most")));
    }
    for (name, n) in nsms {
        if !is_name(name) || name.len() > NAME_MAX {
            let why =
                format!("nsm.{name}: a name is 1 to {NAME_MAX} letters, digits, '.', '_' or '-'");
            return Err(Wrong::new(why));
        }
        if n.placement == Placement::Inline
            && let Some(other) = inline.replace(name)
        {
            let why = format!(
                "nsm.{name}: nsm.{other} is inline already, and the daemon has one poll thread; say placement = \"process\""
            );
            return Err(Wrong::new(why));
        }
        if let Some(core) = n.cores.iter().find(|c| !cores.contains(c.get_ref())) {
            let why = format!(
                "nsm.{name}.cores: this machine has no CPU {} (it has {cores:?})",
                core.get_ref()
            );
            return Err(Wrong { at: Some(core.span().start), why });
        }
    }
    Ok(())
}
