//! The wire contract of Quorate, generated from the files in `proto/`: `v1` for clients and
//! operators, `peer::v1` for the nodes among themselves. The `.proto` files document every field
//! and error. By hand are only `requests`, the rule by which writes are numbered, and what both
//! sides have to agree on: `limits`, `trailers` and [`ClusterId`].

#![warn(missing_docs)]

/// `proto/quorate/v1/`: the services Registry and Admin, and their messages.
pub mod v1 {
    #![allow(
        clippy::all,
        missing_docs,
        reason = "generated; the .proto files are the documentation"
    )]
    tonic::include_proto!("quorate.v1");
}

pub mod limits;
pub mod requests;
pub mod trailers;

mod cluster_id;
mod server_codec;

pub use cluster_id::ClusterId;

/// The services for servers, which keep services encoded: see `build.rs`.
pub mod encoded {
    /// As [`crate::v1`].
    pub mod v1 {
        #![allow(
            clippy::all,
            missing_docs,
            reason = "generated; the .proto files are the documentation"
        )]
        include!(concat!(env!("OUT_DIR"), "/encoded/quorate.v1.rs"));
    }
}

/// What nodes say to each other.
pub mod peer {
    /// `proto/quorate/peer/v1/`.
    pub mod v1 {
        #![allow(
            clippy::all,
            missing_docs,
            reason = "generated; the .proto files are the documentation"
        )]
        tonic::include_proto!("quorate.peer.v1");
    }
}

/// The encoded `FileDescriptorSet` of all services, for gRPC server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
