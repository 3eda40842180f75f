//! What daemon, NSM processes and resolvers log: on standard error, and each sort of line so often only. Guests and NSM processes, which may be
//! hostile, are the cause of some, and would fill the log of all.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{Format, FormatEvent, FormatFields, Full, Writer};
use tracing_subscriber::fmt::{FmtContext, time::SystemTime};
use tracing_subscriber::registry::LookupSpan;

/// Lines of a sort that are written at once: more than there can be guests, all of which may come or go in one moment.
const BURST: u32 = 2000;
/// For each such time one more.
const REST: Duration = Duration::from_secs(1);

pub(crate) fn start() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let format = Format::default().with_ansi(false).with_target(false);
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .event_format(Bounded { format, sorts: Mutex::default() })
        .try_init();
}

/// Lines of one place in the source.
#[derive(Debug)]
struct Sort {
    left: u32,
    since: Instant,
    /// Not written since the last that was.
    withheld: u64,
}

impl Sort {
    fn new(now: Instant) -> Sort {
        Sort { left: BURST, since: now, withheld: 0 }
    }

    /// Whether one more is written, and how many before it were not.
    fn may(&mut self, now: Instant) -> Option<u64> {
        let rests = now.saturating_duration_since(self.since).as_secs() / REST.as_secs();
        self.since += REST * u32::try_from(rests).unwrap_or(u32::MAX);
        self.left = BURST.min(self.left.saturating_add(u32::try_from(rests).unwrap_or(BURST)));
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Some(std::mem::take(&mut self.withheld))
            }
            None => {
                self.withheld += 1;
                None
            }
        }
    }
}

struct Bounded {
    format: Format<Full, SystemTime>,
    sorts: Mutex<HashMap<Identifier, Sort>>,
}

impl<S, N> FormatEvent<S, N> for Bounded
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        // Who asked for more than that is to see it.
        if *event.metadata().level() > Level::INFO {
            return self.format.format_event(context, writer, event);
        }
        let now = Instant::now();
        let may = {
            let mut sorts = self.sorts.lock().unwrap_or_else(PoisonError::into_inner);
            sorts.entry(event.metadata().callsite()).or_insert_with(|| Sort::new(now)).may(now)
        };
        let Some(withheld) = may else { return Ok(()) };
        self.format.format_event(context, writer.by_ref(), event)?;
        if withheld > 0 {
            writeln!(writer, "  {withheld} more like this came before it and were not written")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_too_often_is_counted() {
        let begun = Instant::now();
        let mut sort = Sort::new(begun);
        let written = |sort: &mut Sort, at, n| (0..n).filter(|_| sort.may(at).is_some()).count();
        assert_eq!(written(&mut sort, begun, BURST + 7), BURST as usize);
        let later = begun + REST;
        assert_eq!(sort.may(later), Some(7));
        assert_eq!(sort.may(later), None);
        assert_eq!(sort.may(later + REST - Duration::from_millis(1)), None);
        assert_eq!(sort.may(later + REST), Some(2));
        let much_later = begun + REST * BURST * 2;
        assert_eq!(written(&mut sort, much_later, BURST + 1), BURST as usize);
    }
}
