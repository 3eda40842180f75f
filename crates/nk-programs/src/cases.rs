//! Real programs, one module per program.

mod curl;
mod more;
mod nginx;
mod python;
mod redis;
mod refused;
mod shell;

use crate::suite::Test;

pub(crate) fn tests() -> Vec<Test> {
    [
        shell::tests(),
        curl::tests(),
        nginx::tests(),
        redis::tests(),
        python::tests(),
        more::tests(),
        refused::tests(),
    ]
    .concat()
}
