//! Conversion webhooks of custom resources.

use std::time::Duration;

use coxswain_meta::json::{Value, json};
use uuid::Uuid;

use super::Webhooks;
use crate::Server;

const TIMEOUT: Duration = Duration::from_secs(30);

impl Webhooks {
    /// Objects in the wanted version, in their order.
    ///
    /// # Errors
    /// What the webhook did wrong, or said of its failure.
    pub async fn convert(
        &self,
        server: &Server,
        client: &Value,
        versions: &[String],
        wanted: &str,
        objects: &[Value],
    ) -> Result<Vec<Value>, String> {
        let known = versions.iter().find(|version| matches!(version.as_str(), "v1" | "v1beta1"));
        let version = known.ok_or("no review version of the webhook is known")?;
        let uid = Uuid::new_v4().to_string();
        let review = json!({ "kind": "ConversionReview", "apiVersion": format!("apiextensions.k8s.io/{version}"),
            "request": { "uid": uid, "desiredAPIVersion": wanted, "objects": objects } });
        let answer = self.post(server, client, &review, TIMEOUT).await?;
        let response = &answer["response"];
        if response["uid"] != uid.as_str() {
            return Err(format!("expected response.uid {uid:?}, got {}", response["uid"]));
        }
        if response["result"]["status"] != "Success" {
            let message = response["result"]["message"].as_str().unwrap_or_default();
            return Err(match message {
                "" => "webhook failed without a message".to_owned(),
                message => message.to_owned(),
            });
        }
        let converted = response["convertedObjects"].as_array().cloned().unwrap_or_default();
        if converted.len() != objects.len() {
            return Err(format!("webhook returned {} objects, expected {}", converted.len(), objects.len()));
        }
        for (at, (new, old)) in converted.iter().zip(objects).enumerate() {
            if new["apiVersion"] != wanted {
                return Err(format!("invalid groupVersion at index {at}: {}", new["apiVersion"]));
            }
            for field in ["kind"] {
                if new[field] != old[field] {
                    return Err(format!("invalid converted object at index {at}: {field} changed"));
                }
            }
            for field in ["name", "namespace", "uid"] {
                if new["metadata"][field] != old["metadata"][field] {
                    return Err(format!("invalid converted object at index {at}: metadata.{field} changed"));
                }
            }
        }
        Ok(converted)
    }
}
