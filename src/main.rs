//! The `refrain` binary; everything it does stands in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    refrain::cli::main()
}
