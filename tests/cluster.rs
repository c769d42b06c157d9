//! The cluster in one process: whole nodes, real sockets, real disks, clients of both kinds (the
//! client crate, and the bare wire API). `cargo test -p quorate-cli --test cluster`;
//! `QUORATE_TEST_LOG=info` shows what the nodes say.
//!
//! | file | what is tested |
//! |---|---|
//! | `harness`, `link`, `own_thread`, `ports` | nodes; lines to cut; threads to stop; ports that stay free |
//! | `metronome` | how late the machine is |
//! | `calls`, `stream`, `load` | requests in short; a watch; load through the client |
//! | `membership`, `refusals` | members come and go under load; what must not be done to them |
//! | `joint`, `promotion` | a change of the members that stays open; learners that are to vote |
//! | `newcomers` | clients learn of them in time |
//! | `discovery` | live views of the client crate over dying nodes |
//! | `rolling` | no failed call while providers and nodes are restarted |
//! | `watch_*` | no gap, resume, reset, slow watchers, what a subscription covers |
//! | `health`, `targets` | active health checks; what they are aimed at |
//! | `levels` | rolling upgrades there and back; a cluster's level |
//! | `limits`, `leases`, `reads` | the calls of the registry |
//! | `rights*`, `guarded`, `issuer` | who may call what, and for how long; an access file; signed tokens |
//! | `admin`, `inspected`, `snapshots` | status, health, reflection, overrides; who watches; snapshots, backup |
//! | `clock`, `failover`, `outage` | when leases end, and when not; leaders that stay; all nodes down |
//! | `metrics`, `http_*` | what the HTTP listener answers; its JSON API |
//! | `once` | no write is done twice |
//! | `succession` | who can end a node by saying that its cluster has a successor |
//! | `founding` | a cluster's identity; no second one is founded |
//! | `rolled_back` | nodes on older copies of their directories |
//! | `strangers`, `impostor` | what no peer can do to the log, whatever it says |
//! | `mangled` | what nodes sent each other, with other bytes in it |
//! | `removed`, `evicted` | a node that was taken out; one that goes on as if it led, or a stranger |
//! | `audit_lines` | what the audit log says of whom and what |
//! | `standing` | what a node says of its place in its cluster, and of its condition |
//! | `moving` | nodes that come back under other addresses |
//! | `candidates` | which of several candidates at the same moment goes on |
//! | `idle` | what a node gives back when nothing happens any more |
//! | `forwards` | calls through a follower while its leader stands still |
//! | `room` | a leader whose disk has no room |

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::print_stderr, reason = "measured times")]

mod cluster {
    mod admin;
    mod arriving;
    mod audit_lines;
    mod authority;
    mod backups;
    mod calls;
    mod candidates;
    mod clock;
    mod crowded;
    mod discovery;
    mod evicted;
    mod failover;
    mod foreign;
    mod forwards;
    mod founding;
    mod guarded;
    mod harness;
    mod health;
    mod http_api;
    mod http_bodies;
    mod http_crowd;
    mod http_deadlines;
    mod http_described;
    mod http_discovery;
    mod http_large;
    mod http_leases;
    mod http_origins;
    mod http_pages;
    mod http_watch;
    mod idle;
    mod impostor;
    mod inspected;
    mod issuer;
    mod joint;
    mod leases;
    mod levels;
    mod limits;
    mod link;
    mod load;
    mod mangled;
    mod measured;
    mod membership;
    mod metrics;
    mod metronome;
    mod mixed;
    mod moving;
    mod newcomers;
    mod newer;
    mod once;
    mod operators;
    mod outage;
    mod own_thread;
    mod pages;
    mod ports;
    mod promotion;
    mod reads;
    mod refusals;
    mod removed;
    mod rights;
    mod rights_held;
    mod rights_http;
    mod rights_jwt;
    mod rights_others;
    mod rights_outside;
    mod rights_parameters;
    mod rolled_back;
    mod rolling;
    mod room;
    mod size;
    mod snapshots;
    mod standing;
    mod strangers;
    mod stream;
    mod succession;
    mod targets;
    mod waiting;
    mod watch_begin;
    mod watch_cover;
    mod watch_resume;
}
