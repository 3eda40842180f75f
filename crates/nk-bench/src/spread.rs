//! Median, least and greatest of some samples.

/// What is reported of samples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) greatest: f64,
}

impl Spread {
    /// `None` of no samples.
    pub(crate) fn of(samples: &[f64]) -> Option<Spread> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let n = sorted.len();
        let (upper, lower) = (sorted.get(n / 2)?, sorted.get(n.saturating_sub(1) / 2)?);
        Some(Spread {
            median: (upper + lower) / 2.0,
            least: *sorted.first()?,
            greatest: *sorted.last()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_even_and_none() {
        let odd = Spread::of(&[3.0, 1.0, 2.0]);
        assert_eq!(odd, Some(Spread { median: 2.0, least: 1.0, greatest: 3.0 }));
        let even = Spread::of(&[4.0, 1.0, 2.0, 3.0]);
        assert_eq!(even, Some(Spread { median: 2.5, least: 1.0, greatest: 4.0 }));
        assert_eq!(Spread::of(&[]), None);
    }
}
