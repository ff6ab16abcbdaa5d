//! The files of configMap, secret, downwardAPI and projected volumes.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    DownwardAPIVolumeFile, KeyToPath, Pod, ServiceAccountTokenProjection, Volume, VolumeProjection,
};

use super::SourceError;
use super::atomic::{File, Files};
use crate::kubelet::Kubelet;
use crate::model::PodId;
use crate::objects::ObjectError;
use crate::pod::containers::{self, spec};
use crate::spec::{fields, security};

/// The files of a volume.
#[derive(Debug, Default)]
pub struct Payload {
    /// By path.
    pub files: Files,
    /// When a token among them must be renewed.
    pub refresh_at: Option<Timestamp>,
}

/// Where files come from and how they are written.
struct Source<'a> {
    kubelet: &'a Kubelet,
    pod: &'a Pod,
    id: PodId,
    default_mode: u32,
}

fn mode(bits: Option<i32>, default: u32) -> u32 {
    bits.and_then(|bits| u32::try_from(bits).ok()).unwrap_or(default)
}

/// The plugin's name and the files of a volume; `None` for a volume that is not made of files.
pub async fn of(
    kubelet: &Kubelet,
    pod: &Pod,
    volume: &Volume,
) -> Result<Option<(&'static str, Payload)>, SourceError> {
    let source =
        |bits: Option<i32>| Source { kubelet, pod, id: PodId::of(pod), default_mode: mode(bits, 0o644) };
    let mut payload = Payload::default();
    if let Some(v) = &volume.config_map {
        let files = source(v.default_mode).config_map(&v.name, v.items.as_deref(), v.optional).await?;
        payload.files = files;
        return Ok(Some(("configmap", payload)));
    }
    if let Some(v) = &volume.secret {
        let name = v.secret_name.clone().unwrap_or_default();
        payload.files = source(v.default_mode).secret(&name, v.items.as_deref(), v.optional).await?;
        return Ok(Some(("secret", payload)));
    }
    if let Some(v) = &volume.downward_api {
        payload.files = source(v.default_mode).downward(v.items.as_deref().unwrap_or_default())?;
        return Ok(Some(("downward-api", payload)));
    }
    if let Some(v) = &volume.projected {
        let source = source(v.default_mode);
        for projection in v.sources.iter().flatten() {
            source.project(projection, &mut payload).await?;
        }
        return Ok(Some(("projected", payload)));
    }
    Ok(None)
}

impl Source<'_> {
    async fn project(&self, projection: &VolumeProjection, payload: &mut Payload) -> Result<(), SourceError> {
        if let Some(p) = &projection.config_map {
            payload.files.extend(self.config_map(&p.name, p.items.as_deref(), p.optional).await?);
        }
        if let Some(p) = &projection.secret {
            payload.files.extend(self.secret(&p.name, p.items.as_deref(), p.optional).await?);
        }
        if let Some(p) = &projection.downward_api {
            payload.files.extend(self.downward(p.items.as_deref().unwrap_or_default())?);
        }
        if let Some(p) = &projection.service_account_token {
            let (file, refresh_at) = self.token(p).await?;
            payload.files.insert(p.path.clone(), file);
            payload.refresh_at = Some(payload.refresh_at.map_or(refresh_at, |at| at.min(refresh_at)));
        }
        if projection.cluster_trust_bundle.is_some() || projection.pod_certificate.is_some() {
            let text = "clusterTrustBundle and podCertificate projections are not supported by this kubelet";
            return Err(SourceError::Refused(text.to_owned()));
        }
        Ok(())
    }

    async fn config_map(
        &self,
        name: &str,
        items: Option<&[KeyToPath]>,
        optional: Option<bool>,
    ) -> Result<Files, SourceError> {
        let found = self.kubelet.config_maps.get(&self.id.uid, &self.id.namespace, name).await;
        let data = match found {
            Ok(map) => {
                let text = map.data.iter().flatten().map(|(k, v)| (k.clone(), v.clone().into_bytes()));
                let binary = map.binary_data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone()));
                text.chain(binary).collect()
            }
            Err(ObjectError::NotFound(..)) if optional == Some(true) => BTreeMap::new(),
            Err(error) => return Err(error.into()),
        };
        self.pick("config", data, items, optional)
    }

    async fn secret(
        &self,
        name: &str,
        items: Option<&[KeyToPath]>,
        optional: Option<bool>,
    ) -> Result<Files, SourceError> {
        let found = self.kubelet.secrets.get(&self.id.uid, &self.id.namespace, name).await;
        let data = match found {
            Ok(secret) => secret.data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone())).collect(),
            Err(ObjectError::NotFound(..)) if optional == Some(true) => BTreeMap::new(),
            Err(error) => return Err(error.into()),
        };
        self.pick("secret", data, items, optional)
    }

    /// All keys under their own names, or those the items name.
    fn pick(
        &self,
        kind: &'static str,
        mut data: BTreeMap<String, Vec<u8>>,
        items: Option<&[KeyToPath]>,
        optional: Option<bool>,
    ) -> Result<Files, SourceError> {
        let file = |data, bits| File { data, mode: mode(bits, self.default_mode), owner: None };
        let Some(items) = items.filter(|items| !items.is_empty()) else {
            return Ok(data.into_iter().map(|(key, data)| (key, file(data, None))).collect());
        };
        let mut files = Files::new();
        for item in items {
            match data.get_mut(&item.key) {
                Some(data) => files.insert(item.path.clone(), file(data.clone(), item.mode)),
                None if optional == Some(true) => continue,
                None => return Err(SourceError::NoKey(kind, item.key.clone())),
            };
        }
        Ok(files)
    }

    fn downward(&self, items: &[DownwardAPIVolumeFile]) -> Result<Files, SourceError> {
        let mut files = Files::new();
        for item in items {
            let text = match (&item.field_ref, &item.resource_field_ref) {
                (Some(selector), _) => {
                    fields::field(self.pod, &selector.field_path, &[], &self.kubelet.host_ips)?
                }
                (None, Some(selector)) => {
                    fields::resource(self.pod, selector, None, &self.kubelet.node.allocatable())?
                }
                (None, None) => continue,
            };
            let mode = mode(item.mode, self.default_mode);
            files.insert(item.path.clone(), File { data: text.into_bytes(), mode, owner: None });
        }
        Ok(files)
    }

    /// A token is for the one user the pod's containers run as, if they all run as one.
    async fn token(
        &self,
        projection: &ServiceAccountTokenProjection,
    ) -> Result<(File, Timestamp), SourceError> {
        let token = self.kubelet.tokens.get(self.kubelet, self.pod, projection).await?;
        let every =
            spec(self.pod).containers.iter().chain(containers::init_containers(self.pod).map(|(_, c)| c));
        let users: std::collections::BTreeSet<Option<i64>> =
            every.map(|container| security::user_and_group(self.pod, container).0).collect();
        let owner = match users.first() {
            Some(Some(user)) if users.len() == 1 => u32::try_from(*user).ok(),
            _ => None,
        };
        let group = spec(self.pod).security_context.as_ref().and_then(|c| c.fs_group);
        let owner = owner.filter(|_| group.is_none());
        let mode = if owner.is_some() || group.is_some() { 0o600 } else { self.default_mode };
        Ok((File { data: token.text.into_bytes(), mode, owner }, token.refresh_at))
    }
}
