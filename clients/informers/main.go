// Informers of client-go, typed and over protobuf, and leader election: what every controller stands on.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	applycorev1 "k8s.io/client-go/applyconfigurations/core/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

const (
	namespace = "informers"
	objects   = 200
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	check(err, "the kubeconfig")
	config.QPS, config.Burst = -1, 0
	config.ContentType = "application/vnd.kubernetes.protobuf"
	config.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	client, err := kubernetes.NewForConfig(config)
	check(err, "the client")
	_, err = client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, metav1.CreateOptions{})
	check(err, "creating the namespace")

	seen := follow(ctx, client)
	write(ctx, client)
	seen.expect(ctx, "added", objects)
	seen.expect(ctx, "updated", objects)
	seen.expect(ctx, "deleted", objects)
	conflicts(ctx, client)
	lead(ctx, client)
	fmt.Println("ok")
}

// events counts what an informer tells.
type events struct {
	lock  sync.Mutex
	count map[string]int
}

func (e *events) add(what string) {
	e.lock.Lock()
	defer e.lock.Unlock()
	e.count[what]++
}

func (e *events) expect(ctx context.Context, what string, wanted int) {
	for {
		e.lock.Lock()
		got := e.count[what]
		e.lock.Unlock()
		if got == wanted {
			return
		}
		if got > wanted || ctx.Err() != nil {
			log.Fatalf("%d %s, %d expected", got, what, wanted)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func follow(ctx context.Context, client kubernetes.Interface) *events {
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithNamespace(namespace),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.LabelSelector = "of=test" }))
	informer := factory.Core().V1().ConfigMaps().Informer()
	seen := &events{count: map[string]int{}}
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { seen.add("added") },
		UpdateFunc: func(any, any) { seen.add("updated") },
		DeleteFunc: func(any) { seen.add("deleted") },
	})
	check(err, "the handler")
	factory.Start(ctx.Done())
	for kind, synced := range factory.WaitForCacheSync(ctx.Done()) {
		if !synced {
			log.Fatalf("%v is not synced", kind)
		}
	}
	return seen
}

func write(ctx context.Context, client kubernetes.Interface) {
	maps := client.CoreV1().ConfigMaps(namespace)
	var group sync.WaitGroup
	for number := range objects {
		group.Go(func() {
			name := fmt.Sprintf("map-%d", number)
			made := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels.Set{"of": "test"}}}
			_, err := maps.Create(ctx, made, metav1.CreateOptions{})
			check(err, "creating "+name)
			_, err = maps.Patch(ctx, name, types.StrategicMergePatchType, []byte(`{"data":{"a":"1"}}`), metav1.PatchOptions{})
			check(err, "patching "+name)
		})
	}
	group.Wait()
	list, err := maps.List(ctx, metav1.ListOptions{LabelSelector: "of=test", Limit: 30})
	check(err, "listing")
	pages := len(list.Items)
	for list.Continue != "" {
		list, err = maps.List(ctx, metav1.ListOptions{LabelSelector: "of=test", Limit: 30, Continue: list.Continue})
		check(err, "listing on")
		pages += len(list.Items)
	}
	if pages != objects {
		log.Fatalf("%d objects in all pages", pages)
	}
	err = maps.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "of=test"})
	check(err, "deleting all")
}

// Errors are told apart by client-go's predicates; two appliers of a field meet in a conflict.
func conflicts(ctx context.Context, client kubernetes.Interface) {
	maps := client.CoreV1().ConfigMaps(namespace)
	if _, err := maps.Get(ctx, "nobody", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		log.Fatalf("a missing object: %v", err)
	}
	wanted := applycorev1.ConfigMap("applied", namespace).WithData(map[string]string{"a": "1"})
	first, err := maps.Apply(ctx, wanted, metav1.ApplyOptions{FieldManager: "one"})
	check(err, "applying")
	wanted.WithData(map[string]string{"a": "2"})
	if _, err := maps.Apply(ctx, wanted, metav1.ApplyOptions{FieldManager: "two"}); !apierrors.IsConflict(err) {
		log.Fatalf("applying over another: %v", err)
	}
	_, err = maps.Apply(ctx, wanted, metav1.ApplyOptions{FieldManager: "two", Force: true})
	check(err, "applying by force")
	first.Data["b"] = "3"
	if _, err := maps.Update(ctx, first, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
		log.Fatalf("updating an old version: %v", err)
	}
}

func lead(ctx context.Context, client kubernetes.Interface) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	lock := &resourcelock.LeaseLock{
		LeaseMeta:  metav1.ObjectMeta{Name: "leader", Namespace: namespace},
		Client:     client.CoordinationV1(),
		LockConfig: resourcelock.ResourceLockConfig{Identity: "me"},
	}
	leading := make(chan struct{})
	go leaderelection.RunOrDie(ctx, leaderelection.LeaderElectionConfig{
		Lock: lock, LeaseDuration: 15 * time.Second, RenewDeadline: 10 * time.Second, RetryPeriod: 2 * time.Second,
		ReleaseOnCancel: true,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(context.Context) { close(leading) },
			OnStoppedLeading: func() {},
		},
	})
	select {
	case <-leading:
	case <-ctx.Done():
		log.Fatal("nobody leads")
	}
}

func check(err error, doing string) {
	if err != nil {
		log.Fatalf("%s: %v", doing, err)
	}
}
