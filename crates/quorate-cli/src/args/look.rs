//! `doctor`: what it takes.

use clap::Args;

use super::ClientArgs;

#[derive(Debug, Args)]
#[command(
    after_help = "16 checks: quorum, lag, state hash, versions, snapshots, backups, disks, syncs, clock, certificates, listeners, health\n\
    checks, watches, hot spots; from here, the endpoints of the namespace and the files with credentials. Each finding\n\
    says what it means and what to do. Exits with 0 if nothing is worse than a note, 1 for a warning, 2 for what is\n\
    critical, 3 if no node answers. What the caller may not see is left out, and said so.\n\n\
    Examples:\n  \
    quorate doctor\n  \
    quorate doctor -o json --timeout 10s"
)]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}
