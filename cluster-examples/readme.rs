//! The lines that README.md shows, to be run against `quorate dev`:
//!
//!     QUORATE_NODES=127.0.0.1:7001,7002,7003 cargo run --example readme
//!
//! `tests/readme.rs` compares what stands between the two marks with README.md.

#![allow(clippy::print_stdout, reason = "an example tells its story")]

use quorate_client::{Client, InstanceBuilder};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    // README.md: begin
    let client = Client::from_env()?; // finds the cluster by QUORATE_NODES

    let me = InstanceBuilder::new("orders", "orders-1").endpoint("http", "http://10.0.0.1:8080");
    let registration = client.register(me).await?; // from here on renewed in the background

    let orders = client.discover("orders")?; // a live view: goes on over every failure, never shrinks because of one
    println!("{:?}", orders.usable().await?.as_slice()); // Err if there is none, or nothing is known: never an empty list
    println!("{:?}", orders.listen().next().await); // each change
    registration.deregister().await?;
    // README.md: end
    Ok(())
}
