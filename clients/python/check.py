"""The Python client: typed and dynamic, a watch, patches of each kind, and errors."""

import threading

from kubernetes import client, config, dynamic, utils, watch

NAMESPACE = "python"


def main():
    config.load_kube_config()
    core = client.CoreV1Api()
    core.create_namespace({"metadata": {"name": NAMESPACE}})
    follow(core)
    patches(core)
    dynamically()
    core.delete_namespace(NAMESPACE)
    print("ok")


def follow(core):
    """A watch from a list's version sees every change once and in order."""
    version = core.list_namespaced_config_map(NAMESPACE).metadata.resource_version

    def change():
        for number in range(20):
            core.create_namespaced_config_map(NAMESPACE, {"metadata": {"name": f"map-{number}"}})

    thread = threading.Thread(target=change)
    thread.start()
    names = []
    for event in watch.Watch().stream(
        core.list_namespaced_config_map, NAMESPACE, resource_version=version, timeout_seconds=60
    ):
        if event["object"].metadata.name.startswith("map-"):
            names.append(event["object"].metadata.name)
        if len(names) == 20:
            break
    thread.join()
    assert names == [f"map-{number}" for number in range(20)], names


def patches(core):
    core.patch_namespaced_config_map("map-0", NAMESPACE, {"data": {"a": "1"}})
    core.patch_namespaced_config_map("map-0", NAMESPACE, [{"op": "add", "path": "/data/b", "value": "2"}])
    got = core.read_namespaced_config_map("map-0", NAMESPACE)
    assert got.data == {"a": "1", "b": "2"}, got.data
    got.metadata.resource_version = "1"
    try:
        core.replace_namespaced_config_map("map-0", NAMESPACE, got)
        raise AssertionError("an old version was taken")
    except client.ApiException as error:
        assert error.status == 409, error


def dynamically():
    api = client.ApiClient()
    utils.create_from_dict(
        api,
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "web", "namespace": NAMESPACE},
            "spec": {
                "replicas": 0,
                "selector": {"matchLabels": {"app": "web"}},
                "template": {
                    "metadata": {"labels": {"app": "web"}},
                    "spec": {"containers": [{"name": "web", "image": "web:1"}]},
                },
            },
        },
    )
    deployments = dynamic.DynamicClient(api).resources.get(api_version="apps/v1", kind="Deployment")
    applied = deployments.server_side_apply(
        body={"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {"paused": True}},
        name="web",
        namespace=NAMESPACE,
        field_manager="python",
    )
    assert applied.spec.paused and applied.spec.strategy.type == "RollingUpdate", applied


main()
