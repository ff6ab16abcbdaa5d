// An operator on controller-runtime: a definition of its own, a reconciler with a finalizer, status, owned objects and a
// cache, as envtest's users run them.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/clientcmd"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"
)

const finalizer = "example.com/tidy"

var kind = schema.GroupVersionKind{Group: "example.com", Version: "v1", Kind: "Widget"}

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	ctrl.SetLogger(zap.New(zap.WriteTo(os.Stderr)))
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	check(err, "the kubeconfig")
	_, err = envtest.InstallCRDs(config, envtest.CRDInstallOptions{CRDs: []*apiextensionsv1.CustomResourceDefinition{definition()}})
	check(err, "the definition")

	scheme := runtime.NewScheme()
	check(corev1.AddToScheme(scheme), "the scheme")
	manager, err := ctrl.NewManager(config, ctrl.Options{Scheme: scheme, Metrics: server.Options{BindAddress: "0"}})
	check(err, "the manager")
	err = ctrl.NewControllerManagedBy(manager).For(widget("")).Owns(&corev1.ConfigMap{}).Complete(&reconciler{manager.GetClient()})
	check(err, "the controller")
	go func() { check(manager.Start(ctx), "the manager") }()

	api, err := client.New(config, client.Options{Scheme: scheme})
	check(err, "the client")
	wanted := widget("one")
	check(unstructured.SetNestedField(wanted.Object, "blue", "spec", "colour"), "the spec")
	check(api.Create(ctx, wanted), "creating")
	until(ctx, "its status", func() bool {
		got := widget("one")
		check(api.Get(ctx, client.ObjectKeyFromObject(got), got), "reading")
		state, _, _ := unstructured.NestedString(got.Object, "status", "state")
		return state == "blue"
	})
	bad := widget("bad")
	check(unstructured.SetNestedField(bad.Object, "mauve", "spec", "colour"), "the spec")
	if err := api.Create(ctx, bad); !apierrors.IsInvalid(err) {
		log.Fatalf("what the schema forbids: %v", err)
	}
	// What the operator owns comes back, and goes with its owner.
	owned := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "one", Namespace: "default"}}
	check(api.Get(ctx, client.ObjectKeyFromObject(owned), owned), "reading what is owned")
	first := owned.UID
	check(api.Delete(ctx, owned), "deleting what is owned")
	until(ctx, "its return", func() bool {
		return api.Get(ctx, client.ObjectKeyFromObject(owned), owned) == nil && owned.UID != first
	})
	check(api.Delete(ctx, widget("one"), client.PropagationPolicy(metav1.DeletePropagationForeground)), "deleting")
	until(ctx, "the end of both", func() bool {
		got := widget("one")
		return apierrors.IsNotFound(api.Get(ctx, client.ObjectKeyFromObject(got), got)) &&
			apierrors.IsNotFound(api.Get(ctx, client.ObjectKeyFromObject(owned), owned))
	})
	fmt.Println("ok")
}

type reconciler struct{ client.Client }

func (r *reconciler) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	got := widget("")
	if err := r.Get(ctx, request.NamespacedName, got); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if got.GetDeletionTimestamp() != nil {
		controllerutil.RemoveFinalizer(got, finalizer)
		return ctrl.Result{}, client.IgnoreNotFound(r.Update(ctx, got))
	}
	if controllerutil.AddFinalizer(got, finalizer) {
		return ctrl.Result{}, r.Update(ctx, got)
	}
	colour, _, _ := unstructured.NestedString(got.Object, "spec", "colour")
	owned := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: got.GetName(), Namespace: got.GetNamespace()}}
	_, err := controllerutil.CreateOrUpdate(ctx, r.Client, owned, func() error {
		owned.Data = map[string]string{"colour": colour}
		return controllerutil.SetControllerReference(got, owned, r.Scheme())
	})
	if err != nil {
		return ctrl.Result{}, err
	}
	before := got.DeepCopy()
	if err := unstructured.SetNestedField(got.Object, colour, "status", "state"); err != nil {
		return ctrl.Result{}, err
	}
	return ctrl.Result{}, r.Status().Patch(ctx, got, client.MergeFrom(before))
}

func widget(name string) *unstructured.Unstructured {
	object := &unstructured.Unstructured{}
	object.SetGroupVersionKind(kind)
	object.SetName(name)
	if name != "" {
		object.SetNamespace("default")
	}
	return object
}

func definition() *apiextensionsv1.CustomResourceDefinition {
	text := func(values ...string) apiextensionsv1.JSONSchemaProps {
		props := apiextensionsv1.JSONSchemaProps{Type: "string"}
		for _, value := range values {
			props.Enum = append(props.Enum, apiextensionsv1.JSON{Raw: []byte(fmt.Sprintf("%q", value))})
		}
		return props
	}
	object := func(fields map[string]apiextensionsv1.JSONSchemaProps) apiextensionsv1.JSONSchemaProps {
		return apiextensionsv1.JSONSchemaProps{Type: "object", Properties: fields}
	}
	shape := object(map[string]apiextensionsv1.JSONSchemaProps{
		"spec":   object(map[string]apiextensionsv1.JSONSchemaProps{"colour": text("blue", "green")}),
		"status": object(map[string]apiextensionsv1.JSONSchemaProps{"state": text()}),
	})
	return &apiextensionsv1.CustomResourceDefinition{
		ObjectMeta: metav1.ObjectMeta{Name: "widgets.example.com"},
		Spec: apiextensionsv1.CustomResourceDefinitionSpec{
			Group: kind.Group,
			Scope: apiextensionsv1.NamespaceScoped,
			Names: apiextensionsv1.CustomResourceDefinitionNames{Plural: "widgets", Singular: "widget", Kind: kind.Kind, ListKind: "WidgetList"},
			Versions: []apiextensionsv1.CustomResourceDefinitionVersion{{
				Name: kind.Version, Served: true, Storage: true,
				Schema:       &apiextensionsv1.CustomResourceValidation{OpenAPIV3Schema: &shape},
				Subresources: &apiextensionsv1.CustomResourceSubresources{Status: &apiextensionsv1.CustomResourceSubresourceStatus{}},
			}},
		},
	}
}

func until(ctx context.Context, what string, is func() bool) {
	for !is() {
		if ctx.Err() != nil {
			log.Fatalf("waited in vain for %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func check(err error, doing string) {
	if err != nil {
		log.Fatalf("%s: %v", doing, err)
	}
}
