//! Changing the cluster's level, on the leader, between changes of the members.

use futures_util::future::try_join_all;
use quorate_log::NodeId;
use quorate_state::{Level, Levels, Op};

use super::{IDENTIFY_TIMEOUT, refused};
use crate::error::{MembershipError, NodeError, Unanswered};
use crate::node::{MemberInfo, Node, said};

/// What becomes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LevelChange {
    /// To the highest that every member works at; it is not held any more.
    Raise,
    /// It stays.
    Hold,
}

impl Node {
    pub(super) async fn set_level(&self, change: LevelChange) -> Result<(), NodeError> {
        let now = self.level();
        let level = match change {
            LevelChange::Hold => Level { held: true, ..now },
            LevelChange::Raise => {
                let common = self.common_level().await?;
                Level { number: common.max(now.number), held: false }
            }
        };
        if level != now {
            tracing::info!(from = now.number, to = level.number, held = level.held, "the level");
            self.propose_here(Op::SetLevel(level), None).await?;
        }
        Ok(())
    }

    /// The highest level that every member works at: each says so now, since one that is down may
    /// come back with an older release.
    ///
    /// # Errors
    /// One does not answer.
    pub(crate) async fn common_level(&self) -> Result<u32, NodeError> {
        let others = self.members().into_iter().filter(|info| info.id != self.id());
        let all = try_join_all(others.map(|info| self.levels_of(info))).await?;
        Ok(all.iter().fold(self.levels().max, |common, levels| common.min(levels.max)))
    }

    async fn levels_of(&self, info: MemberInfo) -> Result<Levels, NodeError> {
        let MemberInfo { id, member, .. } = info;
        let address = self.peers.book.address(id, &member.peer_address);
        let found = self.peers.identify(id, &address, None, IDENTIFY_TIMEOUT).await;
        let silent = |reason: Unanswered| refused(MembershipError::Levels { id, reason });
        let found = found.map_err(|status| silent(said(status.code(), status.message())))?;
        match found.node_id == id.get() {
            true => Ok(found.levels),
            false => Err(silent(Unanswered::OtherNode { found: found.node_id, address })),
        }
    }

    /// A node that is to be taken in must work at the cluster's level.
    pub(super) fn check_levels(
        &self,
        id: NodeId,
        address: &str,
        levels: Levels,
    ) -> Result<(), NodeError> {
        let level = self.level().number;
        if levels.contains(level) {
            return Ok(());
        }
        let (address, Levels { min, max }) = (address.to_owned(), levels);
        Err(refused(MembershipError::OtherLevels { id, address, level, min, max }))
    }
}
