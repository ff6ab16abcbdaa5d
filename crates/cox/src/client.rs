//! The transport of components in this process: a `kube::Client` over the API server as a service.

use coxswain_apiserver::{ApiServer, UserInfo};
use coxswain_client::Client;

/// A client that acts as a user.
pub fn in_process(api: &ApiServer, name: &str, groups: &[&str]) -> Client {
    Client::new(api.as_user(UserInfo::new(name, groups)), "default")
}
