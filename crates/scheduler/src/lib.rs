//! The scheduler: a pure core (snapshot, framework, plugins, queue) and a shell that feeds it and binds.
//!
//! Unschedulable pods wait for an event that may help them, as their plugins say, not for a timer.

mod cycle;
mod framework;
mod plugins;
mod pod;
mod preemption;
mod queue;
mod resources;
mod shell;
mod snapshot;

pub use shell::run;
