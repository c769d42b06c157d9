//! The command line: every command, flag and help text. Says nothing of what a command does.

mod client;
mod look;
mod rescue;
mod secure;

mod serve;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use quorate_client::{Consistency, InstanceStatus};
use quorate_node::Networks;

pub(crate) use self::client::ClientArgs;
pub(crate) use self::look::{BundleArgs, DebugCommand, DoctorArgs};
pub(crate) use self::rescue::{BackupCommand, RecoverArgs, RestoreArgs};
pub(crate) use self::secure::{CertsCommand, Place, RoleArg, TokenArgs, TokenCommand};
use crate::instance::{InstanceSettings, Wanted};
use crate::logging::LogFormat;
use crate::parse;

pub(crate) use serve::{Clients, ServeArgs};

#[derive(Debug, Parser)]
#[command(
    name = "quorate",
    version = env!("QUORATE_VERSION"),
    about = "A service registry that several nodes keep as one",
    after_help = "Begin with `quorate dev`: a whole cluster on this machine, and what to try with it.\n\
                  Exit codes: 0 done, 1 refused or failed, 2 usage, 3 cluster unreachable, 4 a node that \
                  does not start before an operator has done what the message says."
)]
pub(crate) struct Cli {
    /// Same as the command's own --context
    #[arg(long, value_name = "NAME")]
    pub(crate) context: Option<String>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a whole cluster on this machine, to try things out
    Dev(DevArgs),
    /// Run one node
    Serve(Box<ServeArgs>),
    /// Register an instance and keep it registered until Ctrl-C
    Register(Box<RegisterArgs>),
    /// Run a program and keep it registered for as long as it runs
    Run(Box<RunArgs>),
    /// Remove an instance
    Deregister(InstanceArgs),
    /// Change a registered instance
    Update(UpdateArgs),
    /// Show the instances of services
    Fetch(FetchArgs),
    /// Follow the instances of services until Ctrl-C
    Watch(WatchArgs),
    /// List the services
    Services(ServicesArgs),
    /// List the instances that depend on a service
    Dependents(DependentsArgs),
    /// Look after the cluster itself
    Cluster {
        #[command(subcommand)]
        command: ClusterCommand,
    },
    /// Say what is wrong with the cluster, and what to do about it
    Doctor(DoctorArgs),
    /// Collect what one needs to look into a problem
    Debug {
        #[command(subcommand)]
        command: DebugCommand,
    },
    /// Look into backups
    Backup {
        #[command(subcommand)]
        command: BackupCommand,
    },
    /// Make a new cluster from a backup
    Restore(RestoreArgs),
    /// Make a new cluster from what is left of one that lost its majority
    Recover(RecoverArgs),
    /// Make certificates for nodes and clients
    Certs {
        #[command(subcommand)]
        command: CertsCommand,
    },
    /// Make tokens for clients
    Token {
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// Print a script that completes quorate's commands and flags in a shell
    #[command(after_help = "Examples:\n  \
        quorate completions bash > /etc/bash_completion.d/quorate\n  \
        quorate completions zsh > /usr/local/share/zsh/site-functions/_quorate\n  \
        quorate completions fish > ~/.config/fish/completions/quorate.fish")]
    Completions { shell: clap_complete::Shell },
    /// Write the man pages, one for each command
    #[command(
        after_help = "Example:\n  quorate man /usr/local/share/man/man1 && man quorate-serve"
    )]
    Man {
        /// Where to: a directory that exists
        dir: PathBuf,
    },
}

#[derive(Debug, Args)]
#[command(
    after_help = "Each node is a process, and may be killed: the others go on, and it is started again after a moment. When this \
    command ends, however it does, so do they.\n\n\
    Examples:\n  \
    quorate dev\n  \
    quorate dev --nodes 5 --data-dir ./dev-data --listen 127.0.0.1:8001\n  \
    quorate dev --secure"
)]
pub(crate) struct DevArgs {
    /// How many nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=9))]
    pub(crate) nodes: u16,
    /// Where the nodes keep their data; without it, in a temporary directory that is removed at the
    /// end
    #[arg(long)]
    pub(crate) data_dir: Option<PathBuf>,
    /// Encrypt all connections, and take only clients with a certificate, by their rights; a CA,
    /// certificates and an access file are made beside the data
    #[arg(long)]
    pub(crate) secure: bool,
    /// The first node's address for clients; the others have the ports after it, peers have theirs
    /// 100 higher, HTTP 200 higher, DNS 300 higher; port 0 picks free ones
    #[arg(long, default_value = "127.0.0.1:7001")]
    pub(crate) listen: SocketAddr,
    /// Networks whose addresses may be probed for health checks, for example 127.0.0.0/8; without
    /// any, none are made
    #[arg(long, value_name = "CIDR,...")]
    pub(crate) health_checks_allow: Option<Networks>,
    #[command(flatten)]
    pub(crate) log: LogArgs,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct LogArgs {
    /// How the log is written to stderr (what is logged: QUORATE_LOG, for example `debug` or
    /// `info,quorate_node=debug`; the Raft library's own lines only with `openraft=debug` in it)
    #[arg(long, env = "QUORATE_LOG_FORMAT", default_value = "text")]
    pub(crate) log_format: LogFormat,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    quorate register orders orders-1 --endpoint http=http://10.0.0.1:8080 \\\n      \
    --zone eu-1a --meta commit=3f9c\n  \
    quorate register orders orders-1 --endpoint http=http://10.0.0.1:8080 \\\n      \
    --check http=/healthz,every=5s\n  \
    quorate register orders orders-1 --endpoint http=http://10.0.0.1:8080 --ttl 1h --once")]
pub(crate) struct RegisterArgs {
    /// The service: a name of 1 to 253 letters, digits, '.', '_' or '-'
    pub(crate) service: String,
    /// The instance's id, such a name, too
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) instance: InstanceSettings,
    /// starting, up, draining or out-of-service [default: up]
    #[arg(long, value_parser = parse::status)]
    pub(crate) status: Option<InstanceStatus>,
    /// Register once, print the lease and exit; the registration ends with its TTL
    #[arg(long)]
    pub(crate) once: bool,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    quorate run --service web --endpoint http=http://127.0.0.1:8080 \\\n      \
    -- ./server --port 8080\n  \
    quorate run --service web --endpoint http=http://127.0.0.1:{port} \\\n      \
    -- ./server --port {port}\n\n\
    {port} is a free port that is chosen for the program, which also finds it in its variable PORT; QUORATE_SERVICE and \
    QUORATE_ID tell it who it is. It is STARTING until its first endpoint accepts connections, then UP. On SIGTERM or \
    Ctrl-C it is taken out of the registry first, then it gets the signal (SIGHUP it gets at once); the exit code is its \
    own (128 + N if a signal N ended it, 127 if it could not be started).")]
pub(crate) struct RunArgs {
    /// The service
    #[arg(long)]
    pub(crate) service: String,
    /// The instance's id [default: the host's name and the number of this process]
    #[arg(long)]
    pub(crate) id: Option<String>,
    #[command(flatten)]
    pub(crate) instance: InstanceSettings,
    /// If its first endpoint accepts no connection for this long, a line says that it stays
    /// STARTING; 0s: it is UP at once, without a look
    #[arg(long, default_value = "10s", value_parser = parse::duration)]
    pub(crate) ready_within: Duration,
    /// What to do if an operator deregisters it, or a newer run takes its id
    #[arg(long, default_value = "keep")]
    pub(crate) if_deregistered: IfDeregistered,
    /// How long it goes on serving after it was deregistered, so that all callers have heard,
    /// before it gets the signal
    #[arg(long, default_value = "1s", value_parser = parse::duration)]
    pub(crate) drain: Duration,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
    /// The program and its arguments, after --
    #[arg(last = true, required = true, value_name = "PROGRAM")]
    pub(crate) program: Vec<OsString>,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  quorate deregister orders orders-1")]
pub(crate) struct InstanceArgs {
    /// The service
    pub(crate) service: String,
    /// The instance's id
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Lasts until the instance registers with something else; `quorate cluster override` outlasts that.\n\n\
    Example:\n  quorate update orders orders-1 --status draining"
)]
pub(crate) struct UpdateArgs {
    /// The service
    pub(crate) service: String,
    /// The instance's id
    pub(crate) id: String,
    /// The new status: starting, up, draining or out-of-service
    #[arg(long, value_parser = parse::status)]
    pub(crate) status: Option<InstanceStatus>,
    /// The new weight: 0 to 1000000
    #[arg(long, value_parser = parse::weight())]
    pub(crate) weight: Option<u32>,
    /// Metadata instead of all that there is (repeatable, up to 64 and 16 KiB in all)
    #[arg(long = "meta", value_name = "KEY=VALUE", value_parser = parse::pair)]
    pub(crate) metadata: Vec<(String, String)>,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    quorate fetch orders\n  \
    quorate fetch orders payments --status up -o json\n  \
    quorate fetch orders --consistency local     also without a quorum; says how old it is")]
pub(crate) struct FetchArgs {
    /// The services
    #[arg(required = true)]
    pub(crate) services: Vec<String>,
    /// How fresh the answer has to be
    #[arg(long, default_value = "linearizable")]
    pub(crate) consistency: ConsistencyArg,
    #[command(flatten)]
    pub(crate) wanted: Wanted,
    /// Wait until the node has this revision
    #[arg(long, default_value_t = 0)]
    pub(crate) min_revision: u64,
    /// Exit with 1 if one of the services has no instance that is wanted; without it, that is an
    /// answer as any other
    #[arg(long)]
    pub(crate) exit_code: bool,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    quorate watch orders\n  \
    quorate watch --prefix pay -o json     one JSON object a line")]
pub(crate) struct WatchArgs {
    /// The services; they need not be there yet
    #[arg(required_unless_present = "prefix")]
    pub(crate) services: Vec<String>,
    /// All services whose name begins with this; "" for all
    #[arg(long, conflicts_with = "services")]
    pub(crate) prefix: Option<String>,
    #[command(flatten)]
    pub(crate) wanted: Wanted,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  quorate services --prefix pay")]
pub(crate) struct ServicesArgs {
    /// Only services whose name begins with this
    #[arg(long, default_value = "", hide_default_value = true)]
    pub(crate) prefix: String,
    /// How fresh the answer has to be
    #[arg(long, default_value = "linearizable")]
    pub(crate) consistency: ConsistencyArg,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  quorate dependents payments     whose instances named payments with --requires"
)]
pub(crate) struct DependentsArgs {
    /// The service that is depended on
    pub(crate) service: String,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// Show the members: which one leads, how far each is, whether they agree
    #[command(after_help = "Examples:\n  \
        quorate cluster status\n  \
        quorate cluster status --wait --timeout 60s    # after a rolling restart\n  \
        quorate cluster status --exit-code > /dev/null || page-somebody")]
    Status {
        /// Wait, up to --timeout, until a node leads, every member answers and all are known by
        /// their addresses
        #[arg(long)]
        wait: bool,
        /// Exit with 0 if the first line says OK, 1 for DEGRADED, 2 for NO WRITES or NO QUORUM (3
        /// as ever: no node answers); without it, 0 for all of them, but 1 where the nodes that
        /// answer are no members: nothing is known of the cluster then
        #[arg(long)]
        exit_code: bool,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Take a running, empty node in: it catches up, then votes
    #[command(after_help = "Start the node first, without --bootstrap and --join.\n\n\
        Example:\n  quorate cluster add 4 10.0.0.4:7101")]
    Add {
        /// The node's id
        #[arg(value_parser = parse::id)]
        id: u64,
        /// Where it listens for peers, HOST:PORT
        address: String,
        /// Let it replicate and serve, but never vote
        #[arg(long)]
        observer: bool,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Take a node out
    #[command(after_help = "Example:\n  quorate cluster remove 3")]
    Remove {
        /// The node's id
        #[arg(value_parser = parse::id)]
        id: u64,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Take a new node in and an old one out, in one change
    #[command(after_help = "Example:\n  quorate cluster replace 3 4 10.0.0.4:7101")]
    Replace {
        /// The id of the node that goes
        #[arg(value_parser = parse::id)]
        old: u64,
        /// The id of the node that comes
        #[arg(value_parser = parse::id)]
        new: u64,
        /// Where the new one listens for peers, HOST:PORT
        address: String,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Hand the lead to another node, and wait until it leads
    #[command(after_help = "Example:\n  quorate cluster transfer-leader 2")]
    TransferLeader {
        /// The node that is to lead; without it, the one that is furthest along
        id: Option<u64>,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Build a snapshot on the node that answers, and purge its log
    #[command(after_help = "Example:\n  quorate cluster snapshot --nodes 10.0.0.2:7001")]
    Snapshot {
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Write a consistent copy of the whole state to a file that only its owner can read
    ///
    /// All that was acknowledged before is in it, whichever node sends it. It is begun where a
    /// quorum (with --local: a node) answers within --timeout; to make and send it may take longer.
    /// Until it is there whole, and checked, it is `.FILE-XXXXXX.partial`; what a killed one left
    /// of that in the directory goes with the next, a day later.
    #[command(after_help = "Examples:\n  \
        quorate cluster backup registry.backup\n  \
        quorate cluster backup --local --nodes 10.0.0.2:7001 node-2.backup")]
    Backup {
        /// The file, which must not exist
        file: PathBuf,
        /// Take what the node has that answers, and say how old that may be: for a cluster
        /// without a quorum
        #[arg(long)]
        local: bool,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// The cluster's level, which says what releases can be its members
    Upgrade {
        #[command(subcommand)]
        command: UpgradeCommand,
    },
    /// Override what an instance says of itself, until it is cleared
    #[command(after_help = "Examples:\n  \
        quorate cluster override orders orders-1 --status out-of-service \\\n      \
        --reason \"disk errors\"\n  \
        quorate cluster override orders orders-1 --clear")]
    Override(OverrideArgs),
    /// List the overrides, also overrides of instances that are not registered
    #[command(after_help = "Example:\n  quorate cluster overrides")]
    Overrides {
        #[command(flatten)]
        client: ClientArgs,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum UpgradeCommand {
    /// Show the level, what each member works at, and what comes next
    #[command(after_help = "Example:\n  quorate cluster upgrade status")]
    Status {
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Raise it now to the highest that every member works at: no way back to older releases
    #[command(after_help = "Example:\n  quorate cluster upgrade finalize")]
    Finalize {
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Leave it where it is until it is finalized, so that each node can go back to its release
    #[command(
        after_help = "Example:\n  quorate cluster upgrade hold     # before the first node is upgraded"
    )]
    Hold {
        #[command(flatten)]
        client: ClientArgs,
    },
}

#[derive(Debug, Args)]
pub(crate) struct OverrideArgs {
    /// The service
    pub(crate) service: String,
    /// The instance's id
    pub(crate) id: String,
    /// Its status, whatever it says: starting, up, draining or out-of-service
    #[arg(long, value_parser = parse::status)]
    pub(crate) status: Option<InstanceStatus>,
    /// Its weight, whatever it says: 0 to 1000000
    #[arg(long, value_parser = parse::weight())]
    pub(crate) weight: Option<u32>,
    /// Why, for operators who read it later; up to 1024 bytes
    #[arg(long, default_value = "", hide_default_value = true)]
    pub(crate) reason: String,
    /// Clear the override
    #[arg(long, conflicts_with_all = ["status", "weight", "reason"])]
    pub(crate) clear: bool,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum IfDeregistered {
    /// The program runs on, without being registered
    Keep,
    /// The program gets a SIGTERM
    Stop,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ConsistencyArg {
    /// Sees every write that was acknowledged before
    Linearizable,
    /// What the node has, at once, also without a quorum
    Local,
}

impl From<ConsistencyArg> for Consistency {
    fn from(arg: ConsistencyArg) -> Self {
        match arg {
            ConsistencyArg::Linearizable => Self::Linearizable,
            ConsistencyArg::Local => Self::Local,
        }
    }
}

#[cfg(test)]
mod tests;
