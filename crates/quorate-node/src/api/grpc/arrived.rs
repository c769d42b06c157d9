//! What a call comes with: a message or a stream of them, how large that may be, and what it is
//! about.

use prost::Message;
use quorate_proto::limits;
use quorate_state::Op;
use tonic::Streaming;

use crate::api::grpc::touched::{Touched, Touches};
use crate::api::grpc::watch::Asks;
use crate::error::CallError;
use crate::node::requests::GivenName;

/// What a call comes with: a message, or a stream of them.
pub(in crate::api) trait Arrived {
    /// # Errors
    /// It is too large.
    fn check_size(&self) -> Result<(), CallError>;

    /// What it is about.
    fn touched(&self) -> Touched<'_>;

    /// The write that it asks for under a lease, and the caller's name for it, if it has both.
    fn named_write(&self) -> Option<(Op, GivenName)>;
}

impl<T: Message + Touches> Arrived for T {
    fn check_size(&self) -> Result<(), CallError> {
        check_size(self)
    }

    fn touched(&self) -> Touched<'_> {
        self.touches()
    }

    fn named_write(&self) -> Option<(Op, GivenName)> {
        self.write()
    }
}

/// The handler checks each message of a stream: its [size](check_size), and what the caller
/// [may](rights).
impl<T> Arrived for Streaming<T> {
    fn check_size(&self) -> Result<(), CallError> {
        Ok(())
    }

    fn touched(&self) -> Touched<'_> {
        Touched::nothing()
    }

    fn named_write(&self) -> Option<(Op, GivenName)> {
        None
    }
}

impl Arrived for Asks {
    fn check_size(&self) -> Result<(), CallError> {
        Ok(())
    }

    fn touched(&self) -> Touched<'_> {
        Touched::nothing()
    }

    fn named_write(&self) -> Option<(Op, GivenName)> {
        None
    }
}

/// # Errors
/// The message is too large.
pub(super) fn check_size(message: &impl Message) -> Result<(), CallError> {
    let bytes = message.encoded_len();
    if bytes <= limits::REQUEST_BYTES {
        return Ok(());
    }
    let instead = "send it in several calls";
    Err(CallError::TooLarge { what: "the request", bytes, limit: limits::REQUEST_BYTES, instead })
}
