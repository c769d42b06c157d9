//! What only the leader can do, as it travels to it from any node, and the type of the answer to
//! each. How they become messages stands in `calls/wire.rs`.

pub(crate) mod wire;

use quorate_log::NodeId;
use quorate_state::{LeaseId, Op, Request};

use crate::node::MemberInfo;
use crate::node::membership::{LeadCall, MembershipCall};
use crate::node::renewals::{Patience, Renewed};
use crate::types::Outcome;

/// Any call.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum LeaderCall {
    Propose(Op, Request),
    Renew(Vec<LeaseId>, Patience),
    Membership(MembershipCall),
    Lead(LeadCall),
}

/// The answer to any call.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum LeaderAnswer {
    Outcome(Outcome),
    Renewed(Renewed),
    Members(Vec<MemberInfo>),
    Leader(NodeId),
}

/// A call, and what it is answered with.
pub(crate) trait Ask: Into<LeaderCall> {
    type Answer;

    /// None: the leader has answered something else.
    fn read(answer: LeaderAnswer) -> Option<Self::Answer>;
}

macro_rules! asks {
    ($($call:ty => $answer:ty: $into:expr, $variant:ident;)*) => {
        $(
            impl From<$call> for LeaderCall {
                fn from(call: $call) -> Self {
                    $into(call)
                }
            }

            impl Ask for $call {
                type Answer = $answer;

                fn read(answer: LeaderAnswer) -> Option<$answer> {
                    match answer {
                        LeaderAnswer::$variant(answer) => Some(answer),
                        _ => None,
                    }
                }
            }
        )*
    };
}

asks! {
    (Op, Request) => Outcome: |(op, request)| LeaderCall::Propose(op, request), Outcome;
    (Vec<LeaseId>, Patience) => Renewed: |(leases, patience)| LeaderCall::Renew(leases, patience), Renewed;
    MembershipCall => Vec<MemberInfo>: LeaderCall::Membership, Members;
    LeadCall => NodeId: LeaderCall::Lead, Leader;
}
