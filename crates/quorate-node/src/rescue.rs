//! What is done with backups and data directories while no node runs on them: a look into a backup,
//! a new cluster from one, and a new cluster from what is left of one that lost its majority.
//!
//! A new cluster has an id of its own and one member. So nodes of the old one are strangers to it,
//! wherever they come back, and its clients find out that it is another cluster.
//!
//! | file | duty |
//! |---|---|
//! | `backup` | a backup that was read and checked |
//! | `remains` | what a data directory holds, found without changing it |
//! | `place` | puts a new state into a data directory: it is there whole or not at all |
//! | `error` | why not |

mod backup;
mod error;
pub(crate) mod place;
mod remains;

pub use backup::{BackedUp, Backup};
pub use error::RescueError;
pub use remains::Remains;

use std::num::NonZeroU64;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use quorate_log::{NodeId, make_dir};
use quorate_proto::ClusterId;
use quorate_state::{Founding, OldNode, Registry};

use crate::rescue::place::{Lock, NewState};
use crate::runtime::random;
use crate::types::{LogId, Member};
use crate::wall;

/// A clock that is no further behind what was written last may be right: the disk may come from
/// another machine.
const BEHIND_MAX: Duration = Duration::from_secs(5 * 60);

/// The parts of a data directory.
const LOG: &str = "log";
const SNAPSHOTS: &str = "snapshots";

/// A cluster that was founded in a data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Founded {
    /// Its id.
    pub cluster_id: ClusterId,
    /// Its only member.
    pub node_id: NodeId,
    /// The revision that it begins with.
    pub revision: u64,
}

/// Makes a directory that is missing or empty the one of a new cluster with the content of a
/// backup, and this node as its only member.
///
/// # Errors
/// There is something in the directory, or it cannot be written; then there is nothing of it.
/// [`RescueError::NotInPlace`]: it counts, and is to be put into its place by a node that starts.
pub async fn restore(backup: &Backup, dir: &Path, node_id: NodeId) -> Result<Founded, RescueError> {
    make_dir(dir).map_err(error::io("create directory", dir))?;
    let lock = Lock::take(dir)?;
    place::check_empty(dir)?;
    let nowhere = Member::default();
    let state = Taken { registry: &backup.registry, last: backup.last, term: backup.term() };
    // The cluster of a backup may run on, and rightly: none of its nodes is told to end.
    found(&lock, state, node_id, nowhere, Vec::new()).await
}

/// Makes the directory the one of a new cluster with all that is in its log, and its node as the
/// only member. What was in it stays beside.
///
/// # Errors
/// It cannot be written, or this machine's clock is behind the files that are there; then it is as
/// it was. [`RescueError::NotInPlace`]: it counts, and is to be put into its place by a node that
/// starts.
pub async fn recover(remains: &Remains) -> Result<Founded, RescueError> {
    check_clock(remains)?;
    let (id, member) = (remains.node_id, remains.member.clone());
    let last = Some(remains.last);
    let state = Taken { registry: &remains.registry, last, term: remains.term };
    found(&remains.lock, state, id, member, remains.others.clone()).await
}

/// How long ago this was is told to each node of the old cluster that comes back. By a clock that
/// has fallen back, as to 1970 on a board without a battery, those would end that ran all the time.
fn check_clock(remains: &Remains) -> Result<(), RescueError> {
    let (dir, now) = (remains.dir().to_owned(), wall::since_1970());
    let written = remains.written().duration_since(UNIX_EPOCH).unwrap_or_default();
    match now + BEHIND_MAX < written {
        true => Err(RescueError::ClockBehind { dir, now, written }),
        false => Ok(()),
    }
}

/// What is taken over.
struct Taken<'a> {
    registry: &'a Registry,
    last: Option<LogId>,
    term: u64,
}

/// `left`: the nodes of the old cluster that may come back.
async fn found(
    lock: &Lock,
    Taken { registry, last, term }: Taken<'_>,
    node_id: NodeId,
    member: Member,
    left: Vec<OldNode>,
) -> Result<Founded, RescueError> {
    let drawn = NonZeroU64::new(random()).unwrap_or(NonZeroU64::MIN);
    let wall_ms = wall::since_1970().as_millis() as u64;
    let founding = Founding { cluster_id: drawn, node_id: node_id.get(), wall_ms, left };
    let registry = registry.founded_anew(founding);
    let (cluster_id, revision) = (ClusterId::from(drawn), registry.revision().0);
    let state = NewState { cluster_id, node_id, member, registry, last, term };
    let dir = lock.dir().to_owned();
    state.write(&dir).await?;
    state.put_in_place(&dir)?;
    Ok(Founded { cluster_id, node_id, revision })
}
