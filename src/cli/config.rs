//! `refrain config`.

use clap::{Args, Subcommand};

use super::{Failure, SettingsArgs};
use crate::config::{Config, DEFAULTS};

/// Check and show the settings.
#[derive(Debug, Args)]
pub(super) struct ConfigArgs {
    #[command(flatten)]
    settings: SettingsArgs,
    #[command(subcommand)]
    verb: ConfigVerb,
}

#[derive(Debug, Subcommand)]
enum ConfigVerb {
    /// Check the settings of all layers; says what is wrong and where.
    Check,
    /// Print what is in force, as TOML, passwords masked.
    Dump,
    /// Print the manual: every setting with its default and what it means.
    Defaults,
}

pub(super) fn run(args: &ConfigArgs) -> Result<(), Failure> {
    let sources = args.settings.sources([]);
    match args.verb {
        ConfigVerb::Check => {
            super::load(&sources)?;
            println!("the settings are good");
        }
        ConfigVerb::Dump => print!("{}", Config::dump(&sources)?),
        ConfigVerb::Defaults => print!("{DEFAULTS}"),
    }
    Ok(())
}
