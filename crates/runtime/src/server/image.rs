//! CRI's `ImageService`.

use coxswain_cri::v1::image_service_server::ImageService;
use coxswain_cri::v1::*;
use tonic::{Request, Response, Status};

use super::Service;
use crate::error::{RuntimeError, during};
use crate::files::now_nanos;
use crate::image::{ImageRecord, ImageStore, StoreError};

impl Service {
    /// Store calls block.
    async fn store<T: Send + 'static>(
        &self,
        call: impl FnOnce(&ImageStore) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, RuntimeError> {
        let store = self.0.store.clone();
        let called = tokio::task::spawn_blocking(move || call(&store)).await;
        Ok(called.map_err(std::io::Error::from).map_err(during("using the image store"))??)
    }
}

fn image(record: ImageRecord) -> Image {
    let user = record.settings().user;
    let user = user.split(':').next().unwrap_or_default();
    let uid = user.parse::<i64>().ok();
    Image {
        spec: Some(ImageSpec { image: record.id.clone(), ..Default::default() }),
        id: record.id,
        repo_tags: record.repo_tags,
        repo_digests: record.repo_digests,
        size: record.size,
        uid: uid.map(|value| Int64Value { value }),
        username: if uid.is_none() { user.to_owned() } else { String::new() },
        pinned: false,
    }
}

fn name(spec: Option<ImageSpec>) -> Result<String, RuntimeError> {
    let name = spec.map(|spec| spec.image).unwrap_or_default();
    if name.is_empty() { Err(RuntimeError::Invalid("image is not specified".to_owned())) } else { Ok(name) }
}

#[tonic::async_trait]
impl ImageService for Service {
    async fn list_images(
        &self,
        request: Request<ListImagesRequest>,
    ) -> Result<Response<ListImagesResponse>, Status> {
        let wanted = request.into_inner().filter.and_then(|filter| filter.image).map(|spec| spec.image);
        let wanted = wanted.filter(|name| !name.is_empty());
        let records = self
            .store(move |store| match wanted {
                Some(name) => Ok(store.find(&name)?.into_iter().collect()),
                None => store.list(),
            })
            .await?;
        Ok(Response::new(ListImagesResponse { images: records.into_iter().map(image).collect() }))
    }

    async fn image_status(
        &self,
        request: Request<ImageStatusRequest>,
    ) -> Result<Response<ImageStatusResponse>, Status> {
        let name = name(request.into_inner().image)?;
        let record = self.store(move |store| store.find(&name)).await?;
        Ok(Response::new(ImageStatusResponse { image: record.map(image), info: Default::default() }))
    }

    async fn pull_image(
        &self,
        request: Request<PullImageRequest>,
    ) -> Result<Response<PullImageResponse>, Status> {
        let request = request.into_inner();
        let name = name(request.image)?;
        let record = self.0.puller.pull(&name, request.auth.as_ref()).await.map_err(RuntimeError::from)?;
        Ok(Response::new(PullImageResponse { image_ref: record.id }))
    }

    async fn remove_image(
        &self,
        request: Request<RemoveImageRequest>,
    ) -> Result<Response<RemoveImageResponse>, Status> {
        let name = name(request.into_inner().image)?;
        self.store(move |store| store.remove(&name)).await?;
        Ok(Response::new(RemoveImageResponse {}))
    }

    async fn image_fs_info(
        &self,
        _: Request<ImageFsInfoRequest>,
    ) -> Result<Response<ImageFsInfoResponse>, Status> {
        let (bytes, inodes) = self.store(|store| Ok(store.usage())).await?;
        let mountpoint = self.0.config.root.display().to_string();
        let usage = |used_bytes, inodes_used| FilesystemUsage {
            timestamp: now_nanos(),
            fs_id: Some(FilesystemIdentifier { mountpoint: mountpoint.clone() }),
            used_bytes: Some(UInt64Value { value: used_bytes }),
            inodes_used: Some(UInt64Value { value: inodes_used }),
        };
        Ok(Response::new(ImageFsInfoResponse {
            image_filesystems: vec![usage(bytes, inodes)],
            container_filesystems: vec![usage(bytes, inodes)],
        }))
    }
}
