//! The transport room over real UDP on loopback: streams never end cleanly by accident, codes and reasons arrive,
//! waits are bounded, and a restarted gateway is noticed.

mod connections;
mod pair;
mod restart;
mod streams;
