//! What stands in the metadata of calls, of answers and of refusals, beside their messages.

/// Of a refusal: the incarnation that stands against a registration, decimal.
pub const INCARNATION: &str = "quorate-incarnation";
/// Of a refusal: how long to stay away, ms, decimal.
pub const RETRY_AFTER_MS: &str = "retry-after-ms";
/// Of a refusal: this node has no room for the call, and another one may. Its value says nothing.
pub const TRY_ELSEWHERE: &str = "try-elsewhere";
/// Of every answer and refusal, once the node knows it: the cluster that the node is of, 16 hex
/// digits. It proves nothing, and is no secret.
pub const CLUSTER: &str = "quorate-cluster-id";
/// Of a call: its name for the node's log. The first 64 bytes count.
pub const REQUEST_ID: &str = "x-request-id";
