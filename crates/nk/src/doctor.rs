//! `nk doctor`: what this machine lacks, and what each lack costs.
//!
//! | module | what |
//! |---|---|
//! | [`facts`] | what the machine is asked |
//! | [`mod@judge`] | what that means: nothing here reads anything |

mod facts;
mod judge;

use serde_json::json;

use crate::Failure;
use facts::Facts;
use judge::{Finding, State, judge};

pub(crate) fn doctor(as_json: bool) -> Result<(), Failure> {
    let findings = judge(&Facts::read());
    let stops: Vec<&str> =
        findings.iter().filter(|f| f.state == State::Stops).map(|f| f.what).collect();
    if as_json {
        let list: Vec<_> = findings
            .iter()
            .map(|f| {
                json!({
                    "what": f.what, "state": f.state.word(), "found": f.found, "cost": f.cost,
                })
            })
            .collect();
        println!("{:#}", json!({ "guests": stops.is_empty(), "findings": list }));
    } else {
        print!("{}", text(&findings));
    }
    if stops.is_empty() {
        return Ok(());
    }
    Err(Failure::new(1, format!("guests cannot run here: {}", stops.join(", "))))
}

fn text(findings: &[Finding]) -> String {
    let mut text = String::new();
    for f in findings {
        text += &format!("{:6} {:22} {}\n", f.state.word(), f.what, f.found);
        if let Some(cost) = &f.cost {
            text += &format!("{:29} {cost}\n", "");
        }
    }
    text
}
