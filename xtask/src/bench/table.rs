//! Both sides in turn, and what is printed of it.

use anyhow::{Context, Result};
use nk_programs::world::Side;

use crate::measure::{Spread, spread};

/// A figure of a load: its name with unit, and digits after the point.
pub(super) type Figure = (&'static str, usize);

/// What was found, by figure.
pub(super) struct Both<const N: usize> {
    pub(super) native: [Spread; N],
    pub(super) guest: [Spread; N],
}

/// Runs a load natively and as a guest, so many times; who goes first takes turns, too.
pub(super) fn in_turn<const N: usize>(
    rounds: usize,
    mut run: impl FnMut(Side) -> Result<[f64; N]>,
) -> Result<Both<N>> {
    let (mut native, mut guest) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        for turn in 0..2 {
            if (round + turn) % 2 == 0 {
                native.push(run(Side::Plain).context("native")?);
            } else {
                guest.push(run(Side::Guest).context("guest")?);
            }
        }
    }
    Ok(Both { native: by_figure(&native)?, guest: by_figure(&guest)? })
}

/// The spread of each figure.
pub(super) fn by_figure<const N: usize>(samples: &[[f64; N]]) -> Result<[Spread; N]> {
    let mut spreads = [Spread { median: 0.0, least: 0.0, greatest: 0.0 }; N];
    for (figure, to) in spreads.iter_mut().enumerate() {
        *to = spread(samples.iter().filter_map(|sample| sample.get(figure).copied()))?;
    }
    Ok(spreads)
}

pub(super) fn head() {
    println!("| load | figure | native | guest | guest/native |");
    println!("|---|---|---|---|---|");
}

pub(super) fn lines<const N: usize>(load: &str, figures: [Figure; N], both: &Both<N>) {
    for ((figure, native), guest) in figures.iter().zip(both.native).zip(both.guest) {
        line(load, *figure, Some(native), Some(guest));
    }
}

/// One line; a side that was not measured is left empty.
pub(super) fn line(load: &str, figure: Figure, native: Option<Spread>, guest: Option<Spread>) {
    let (name, digits) = figure;
    let ratio = native.zip(guest).map(|(native, guest)| guest.median / native.median);
    println!(
        "| {load} | {name} | {} | {} | {} |",
        native.map_or(String::new(), |s| show(s, digits)),
        guest.map_or(String::new(), |s| show(s, digits)),
        ratio.map_or(String::new(), |ratio| format!("{ratio:.2}"))
    );
}

pub(super) fn show(s: Spread, digits: usize) -> String {
    format!("{:.digits$} ({:.digits$} to {:.digits$})", s.median, s.least, s.greatest)
}
