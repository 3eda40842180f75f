//! The runner itself: it sees a difference where there is one, and only there. `env IS_GUEST=1` stands in
//! for a guest.

use std::fs;
use std::path::{Path, PathBuf};

use nk_conformance::{Modes, Options, Outcome, discover, run_suite};

struct Fixture {
    dir: PathBuf,
}

impl Fixture {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("nk-runner-{}-{name}", std::process::id()));
        fs::create_dir_all(dir.join("cases")).unwrap();
        fs::write(dir.join("case.h"), "#include <stdio.h>\n#include <stdlib.h>\n").unwrap();
        Self { dir }
    }

    fn case(self, name: &str, head: &str, body: &str) -> Self {
        let text = format!(
            "{head}\n#include \"case.h\"\nint main(int argc, char **argv) {{ (void)argc; (void)argv; {body} }}\n"
        );
        fs::write(self.dir.join("cases").join(name), text).unwrap();
        self
    }

    fn run(&self, guest: &str, modes: Modes) -> Vec<Outcome> {
        let options = Options {
            conformance_dir: self.dir.clone(),
            build_dir: self.dir.join("build"),
            guest: guest.split_whitespace().map(str::to_owned).collect(),
            modes,
            jobs: 2,
            repeat: 1,
        };
        let cases = discover(&self.dir.join("cases"), "").unwrap();
        run_suite(&options, &cases, |_| {}).unwrap()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

const GUEST: &str = "env IS_GUEST=1";

#[test]
fn a_difference_in_trace_or_status_is_a_failure() {
    let fixture = Fixture::new("differs")
        .case("01_same.c", "// shape: self", "puts(\"same\"); return 0;")
        .case(
            "02_trace.c",
            "// shape: self",
            "puts(getenv(\"IS_GUEST\") ? \"b\" : \"a\"); return 0;",
        )
        .case("03_status.c", "// shape: self", "puts(\"same\"); return !!getenv(\"IS_GUEST\");")
        .case("04_native_fails.c", "// shape: self", "return 3;");
    let outcomes = fixture.run(GUEST, Modes::Both);
    let failures: Vec<usize> = outcomes.iter().map(|outcome| outcome.failures.len()).collect();
    assert_eq!(failures, [0, 1, 1, 1]);
    assert_eq!(outcomes[1].failures[0].run, "guest");
    assert!(outcomes[1].failures[0].report.contains("- a\n+ b\n"));
    assert!(outcomes[2].failures[0].report.contains("exit 1 (expected exit 0)"));
    assert_eq!(outcomes[3].failures[0].run, "native");
}

#[test]
fn native_runs_alone_never_start_the_guest() {
    let fixture = Fixture::new("native").case(
        "01_guest.c",
        "// shape: self",
        "puts(getenv(\"IS_GUEST\") ? \"guest\" : \"native\"); return 0;",
    );
    assert!(fixture.run("", Modes::Both)[0].failures.is_empty());
}

#[test]
fn an_expectation_for_guests_replaces_the_native_trace() {
    let body = "puts(getenv(\"IS_GUEST\") ? \"refused\" : \"works\"); return 0;";
    let fixture = Fixture::new("expect")
        .case("01_lines.c", "// shape: self\n// expect-guest: refused", body)
        .case("02_file.c", "// shape: self", body)
        .case("03_wrong.c", "// shape: self\n// expect-guest: something else", body);
    fs::write(fixture.dir.join("cases/02_file.expect"), "refused\n").unwrap();
    let outcomes = fixture.run(GUEST, Modes::Both);
    let failures: Vec<usize> = outcomes.iter().map(|outcome| outcome.failures.len()).collect();
    assert_eq!(failures, [0, 0, 1]);
}

#[test]
fn a_pair_runs_in_every_combination_that_is_asked_for() {
    // The server differs as a guest, the client does not.
    let body = "int server = argv[1][0] == 's'; puts(server && getenv(\"IS_GUEST\") ? \"b\" : \"a\"); return 0;";
    let fixture = Fixture::new("pair")
        .case("01_pair.c", "// shape: pair", body)
        .case("02_client.c", "// shape: client", body)
        .case("03_server.c", "// shape: server", body);
    let runs = |modes| {
        let outcomes = fixture.run(GUEST, modes);
        let names = |outcome: &Outcome| {
            let runs: Vec<String> = outcome.failures.iter().map(|one| one.run.clone()).collect();
            (outcome.runs, runs)
        };
        outcomes.iter().map(names).collect::<Vec<_>>()
    };
    let (server, both) = ("guest server, native client", "guest server, guest client");
    assert_eq!(
        runs(Modes::Both),
        [(4, vec![server.to_owned(), both.to_owned()]), (2, vec![]), (2, vec![server.to_owned()])]
    );
    assert_eq!(
        runs(Modes::Client),
        [(2, vec![]), (2, vec![]), (1, vec![])] // the server-only case has nothing to run but its reference
    );
}

#[test]
fn a_case_that_does_not_compile_fails_with_the_compilers_words() {
    let fixture = Fixture::new("compile").case("01_broken.c", "// shape: self", "return x;");
    let outcomes = fixture.run(GUEST, Modes::Both);
    assert!(outcomes[0].failures[0].report.contains("undeclared"));
}

#[test]
fn the_tree_s_own_cases_are_all_well_formed() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance/cases");
    let cases = discover(&dir, "").unwrap();
    assert!(cases.len() > 100, "only {} cases found", cases.len());
}
