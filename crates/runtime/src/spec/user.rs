//! Who a container runs as: the pod's wishes against the image's `/etc/passwd` and `/etc/group`.

use std::io::Read;
use std::path::Path;

use coxswain_cri::v1::{LinuxContainerSecurityContext, SupplementalGroupsPolicy};

use super::SpecError;

/// A container's identity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups, the primary one among them, sorted.
    pub groups: Vec<u32>,
}

/// The image's user database.
#[derive(Debug, Default)]
pub(crate) struct Accounts {
    passwd: String,
    group: String,
}

impl Accounts {
    /// Reads the files below `rootfs`; links in them cannot lead outside.
    pub fn read(rootfs: &Path) -> Self {
        let read = |name: &str| {
            let mut text = String::new();
            let file = crate::snapshot::open_in(rootfs, name);
            // An image without the file, or with a strange one, has no accounts.
            let _ = file.and_then(|file| file.take(1 << 20).read_to_string(&mut text));
            text
        };
        Self { passwd: read("etc/passwd"), group: read("etc/group") }
    }

    #[cfg(test)]
    fn new(passwd: &str, group: &str) -> Self {
        Self { passwd: passwd.to_owned(), group: group.to_owned() }
    }

    /// `(name, uid, gid)` of an account.
    fn users(&self) -> impl Iterator<Item = (&str, u32, u32)> {
        self.passwd.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let uid = fields.nth(1)?.parse().ok()?;
            Some((name, uid, fields.next()?.parse().ok()?))
        })
    }

    /// `(name, gid, members)` of a group.
    fn groups(&self) -> impl Iterator<Item = (&str, u32, &str)> {
        self.group.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let gid = fields.nth(1)?.parse().ok()?;
            Some((name, gid, fields.next().unwrap_or_default()))
        })
    }

    fn group_id(&self, group: &str) -> Result<u32, SpecError> {
        let named = self.groups().find(|(name, ..)| *name == group).map(|(_, gid, _)| gid);
        named.or_else(|| group.parse().ok()).ok_or_else(|| SpecError::UnknownGroup(group.to_owned()))
    }

    fn memberships(&self, user: &str) -> impl Iterator<Item = u32> {
        self.groups()
            .filter(move |(.., members)| members.split(',').any(|m| m == user))
            .map(|(_, gid, _)| gid)
    }
}

/// Resolves a security context; `image_user` is the image's `USER` (`name`, `uid`, `x:group`).
pub(crate) fn resolve(
    context: &LinuxContainerSecurityContext,
    image_user: &str,
    accounts: &Accounts,
) -> Result<Identity, SpecError> {
    let (user, image_group) = match (&context.run_as_user, context.run_as_username.as_str()) {
        (Some(uid), _) => (uid.value.to_string(), None),
        (None, "") => match image_user.split_once(':') {
            Some((user, group)) => (user.to_owned(), Some(group)),
            None => (image_user.to_owned(), None),
        },
        (None, name) => (name.to_owned(), None),
    };
    let by_name = accounts.users().find(|(name, ..)| *name == user);
    let numeric: Option<u32> = if user.is_empty() { Some(0) } else { user.parse().ok() };
    let account = by_name.or_else(|| accounts.users().find(|(_, uid, _)| Some(*uid) == numeric));
    let uid = account.map(|(_, uid, _)| uid).or(numeric).ok_or(SpecError::UnknownUser(user))?;
    let gid = match (&context.run_as_group, image_group) {
        (Some(gid), _) => {
            u32::try_from(gid.value).map_err(|_| SpecError::UnknownGroup(gid.value.to_string()))?
        }
        (None, Some(group)) => accounts.group_id(group)?,
        (None, None) => account.map_or(0, |(.., gid)| gid),
    };
    let mut groups: Vec<u32> =
        context.supplemental_groups.iter().filter_map(|&gid| u32::try_from(gid).ok()).collect();
    groups.push(gid);
    if context.supplemental_groups_policy() == SupplementalGroupsPolicy::Merge
        && let Some((name, ..)) = account
    {
        groups.extend(accounts.memberships(name));
    }
    groups.sort_unstable();
    groups.dedup();
    Ok(Identity { uid, gid, groups })
}

#[cfg(test)]
mod tests {
    use coxswain_cri::v1::Int64Value;

    use super::*;

    fn check(context: LinuxContainerSecurityContext, image_user: &str, expected: (u32, u32, &[u32])) {
        let accounts = Accounts::new(
            "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/:/bin/sh\n",
            "root:x:0:\nweb:x:34:\nlogs:x:50:web,other\n",
        );
        let identity = resolve(&context, image_user, &accounts).unwrap();
        assert_eq!((identity.uid, identity.gid, &identity.groups[..]), expected);
    }

    #[test]
    fn the_pod_wins_over_the_image_and_groups_merge() {
        let none = LinuxContainerSecurityContext::default;
        check(none(), "", (0, 0, &[0]));
        check(none(), "web", (33, 34, &[34, 50]));
        check(none(), "33:logs", (33, 50, &[50]));
        check(none(), "1234", (1234, 0, &[0]));
        let user = |uid| LinuxContainerSecurityContext {
            run_as_user: Some(Int64Value { value: uid }),
            supplemental_groups: vec![2000],
            ..Default::default()
        };
        check(user(33), "root", (33, 34, &[34, 50, 2000]));
        let strict = LinuxContainerSecurityContext {
            run_as_group: Some(Int64Value { value: 7 }),
            supplemental_groups_policy: SupplementalGroupsPolicy::Strict as i32,
            ..user(33)
        };
        check(strict, "", (33, 7, &[7, 2000]));
    }

    #[test]
    fn an_unknown_name_is_an_error() {
        let failed = resolve(&LinuxContainerSecurityContext::default(), "nobody", &Accounts::default());
        assert!(matches!(failed, Err(SpecError::UnknownUser(name)) if name == "nobody"));
    }
}
