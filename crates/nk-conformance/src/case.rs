//! A case: one C file and the directives in its leading `//` comment.
//!
//! Directives are `// key: value` lines before the first line of code; other comment lines are prose for
//! the reader. An unknown key that looks like a directive of ours is an error, so a typo cannot quietly
//! turn a check off.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// The longest a program of a case may take, unless the case says otherwise. Above the alarm in `case.h`,
/// so that a hanging program names itself by its SIGALRM.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(25);

/// Which programs a case has and where they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// One program with both ends inside.
    Own,
    /// Two roles of one program, run in every combination of native and guest.
    Pair,
    /// Two roles; the server is what is looked at, its client is always native.
    Server,
    /// Two roles; the client is what is looked at, its server is always native.
    Client,
}

/// One case as found on disk.
#[derive(Debug, Clone)]
pub struct Case {
    /// File name without `.c`, such as `04_epoll_level`.
    pub name: String,
    pub source: PathBuf,
    pub shape: Shape,
    /// Further arguments for the compiler.
    pub compiler_flags: Vec<String>,
    /// What a guest has to print where that differs from native; `None`: the same as native.
    pub expect_guest: Option<String>,
    pub timeout: Duration,
}

/// Finds every case in a directory, in order of name, whose name contains `filter`.
pub fn discover(dir: &Path, filter: &str) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "c") {
            let case = Case::read(&path)?;
            if case.name.contains(filter) {
                cases.push(case);
            }
        }
    }
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(cases)
}

impl Case {
    /// Reads one case file's directives.
    pub fn read(source: &Path) -> Result<Case> {
        let name = source.file_stem().and_then(|stem| stem.to_str());
        let name = name.with_context(|| format!("{}: odd name", source.display()))?.to_owned();
        let text = fs::read_to_string(source)
            .with_context(|| format!("cannot read {}", source.display()))?;
        let mut case = Case::parse(name, source.to_owned(), &text)
            .with_context(|| format!("in {}", source.display()))?;
        let beside = source.with_extension("expect");
        if beside.exists() {
            ensure!(case.expect_guest.is_none(), "both expect-guest lines and a .expect file");
            case.expect_guest = Some(fs::read_to_string(&beside)?);
        }
        ensure!(
            case.expect_guest.is_none() || case.shape == Shape::Own,
            "{}: only a self case can have an expectation of its own for guests",
            source.display()
        );
        Ok(case)
    }

    fn parse(name: String, source: PathBuf, text: &str) -> Result<Case> {
        ensure!(
            name.len() > 3 && name.as_bytes().iter().take(2).all(u8::is_ascii_digit),
            "a case is named NN_name.c, NN being the behaviour's number"
        );
        let mut shape = None;
        let mut compiler_flags = Vec::new();
        let mut expect_guest: Option<String> = None;
        let mut timeout = TIMEOUT_DEFAULT;
        for line in text.lines() {
            let Some(comment) = line.strip_prefix("//") else { break };
            let comment = comment.strip_prefix(' ').unwrap_or(comment);
            let Some((key, value)) = comment.split_once(':') else { continue };
            match key {
                "shape" => {
                    shape = Some(match value.trim() {
                        "self" => Shape::Own,
                        "pair" => Shape::Pair,
                        "server" => Shape::Server,
                        "client" => Shape::Client,
                        other => bail!("unknown shape {other:?}"),
                    });
                }
                "cc" => compiler_flags.extend(value.split_whitespace().map(str::to_owned)),
                "expect-guest" => {
                    let expected = expect_guest.get_or_insert_default();
                    expected.push_str(value.strip_prefix(' ').unwrap_or(value));
                    expected.push('\n');
                }
                "timeout-s" => timeout = Duration::from_secs(value.trim().parse()?),
                // Prose may hold a colon; one lower-case word with one is a directive that we do not know.
                _ if key.bytes().all(|b| b.is_ascii_lowercase() || b == b'-') => {
                    bail!("unknown directive {key:?}")
                }
                _ => {}
            }
        }
        let shape = shape.context("no `// shape: self|pair|server|client` line at the top")?;
        Ok(Case { name, source, shape, compiler_flags, expect_guest, timeout })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Case> {
        Case::parse("04_x".into(), "04_x.c".into(), text)
    }

    #[test]
    fn directives_end_at_the_first_line_of_code() {
        let case = parse(
            "// shape: self\n// Prose with this: no directive.\n// cc: -O2 -DX\n\
             // expect-guest: a\n// expect-guest: b\nint x;\n// shape: pair\n",
        )
        .unwrap();
        assert_eq!(case.shape, Shape::Own);
        assert_eq!(case.compiler_flags, ["-O2", "-DX"]);
        assert_eq!(case.expect_guest.as_deref(), Some("a\nb\n"));
    }

    #[test]
    fn a_missing_shape_or_a_typo_is_an_error() {
        assert!(parse("int x;").is_err());
        assert!(parse("// shape: selfish\n").is_err());
        assert!(parse("// shape: self\n// expect-gest: a\n").is_err());
        assert!(Case::parse("epoll".into(), "epoll.c".into(), "// shape: self\n").is_err());
    }
}
