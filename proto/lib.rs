//! The wire contract of Quorate, generated from the files in `proto/`: `v1` for clients and operators, `peer::v1` for the nodes
//! among themselves. The `.proto` files document every field and error. By hand are only `requests`, the rule by which
//! writes are numbered, and what both sides have to agree on: `limits` and `trailers`.

#![allow(clippy::all, missing_docs, unreachable_pub)] // generated code

pub mod v1 {
    tonic::include_proto!("quorate.v1");
}

pub mod limits;
pub mod requests;
pub mod trailers;

mod server_codec;

/// The services for servers, which keep services encoded: see `build.rs`.
pub mod encoded {
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/encoded/quorate.v1.rs"));
    }
}

pub mod peer {
    pub mod v1 {
        tonic::include_proto!("quorate.peer.v1");
    }
}

/// The encoded `FileDescriptorSet` of all services, for gRPC server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
