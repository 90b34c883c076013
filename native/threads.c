// Threads that live as long as their CPU backend. llama.cpp sets the thread pool of its caller, or none, before every graph; Node's
// binding has none, so ggml would start threads for every token. llama.cpp finds the functions that it calls in the registry of
// ggml's CPU backends, where the functions here take their places.
#include "platform.h"
#include <stdint.h>
#include <string.h>

// ggml's records as far as they are used here (ggml-backend-impl.h, interface 2; ggml.h).
enum { INTERFACE = 2 };

typedef struct Registry {
  int version;
  const char *(*name)(struct Registry *);
  size_t (*device_count)(struct Registry *);
  void *(*device)(struct Registry *, size_t);
  void *(*function)(struct Registry *, const char *);
  void *context;
} Registry;

typedef struct Backend {
  void *guid;
  const char *(*name)(struct Backend *);
  void (*free)(struct Backend *);
} Backend;

typedef struct {
  _Bool processors[512];
  int threads;
  int priority;
  uint32_t polling;
  _Bool strict;
  _Bool paused;
} PoolSettings;

// A backend that llama.cpp left without a pool, and the pool that it has instead.
typedef struct Kept {
  Backend *backend;
  void (*free_backend)(Backend *);
  int threads;
  void *pool;
  struct Kept *next;
} Kept;

static Lock of_all = UNLOCKED;
static Kept *all;
static void *(*function_of)(Registry *, const char *);
static void *(*new_pool)(PoolSettings *);
static void (*free_pool)(void *);
static void (*set_pool)(Backend *, void *);
static void (*set_threads)(Backend *, int);

static Kept *find(const Backend *backend) {
  Kept *kept = all;
  while (kept != NULL && kept->backend != backend) kept = kept->next;
  return kept;
}

static void free_backend(Backend *backend) {
  lock(&of_all);
  Kept **place = &all;
  while (*place != NULL && (*place)->backend != backend) place = &(*place)->next;
  Kept *kept = *place;
  if (kept != NULL) *place = kept->next;
  unlock(&of_all);
  if (kept == NULL) return; // not reached: only backends in the list are freed by this
  kept->free_backend(backend);
  if (kept->pool != NULL) free_pool(kept->pool);
  free(kept);
}

static Kept *keep(Backend *backend) {
  Kept *kept = calloc(1, sizeof(Kept));
  if (kept == NULL) return NULL;
  *kept = (Kept){.backend = backend, .free_backend = backend->free, .next = all};
  backend->free = free_backend;
  all = kept;
  return kept;
}

static void set_pool_or_keep(Backend *backend, void *pool) {
  if (pool == NULL) {
    lock(&of_all);
    Kept *kept = find(backend);
    if (kept == NULL) kept = keep(backend);
    if (kept != NULL && kept->pool == NULL && kept->threads > 1) {
      // threads sleep between tokens: polling would take the processor from whatever prepares the next one
      PoolSettings settings = {.threads = kept->threads, .polling = 0};
      kept->pool = new_pool(&settings);
    }
    if (kept != NULL) pool = kept->pool;
    unlock(&of_all);
  }
  set_pool(backend, pool);
}

// llama.cpp calls this after setting the pool, so a pool that became too small is replaced one graph later.
static void set_threads_and_remember(Backend *backend, int threads) {
  lock(&of_all);
  Kept *kept = find(backend);
  void *outgrown = NULL;
  if (kept != NULL) {
    if (kept->pool != NULL && threads > kept->threads) {
      outgrown = kept->pool;
      kept->pool = NULL;
    }
    if (threads > kept->threads) kept->threads = threads;
  }
  unlock(&of_all);
  if (outgrown != NULL) {
    set_pool(backend, NULL);
    free_pool(outgrown);
  }
  set_threads(backend, threads);
}

static void *function_or_ours(Registry *registry, const char *name) {
  if (strcmp(name, "ggml_backend_cpu_set_threadpool") == 0) return set_pool_or_keep;
  if (strcmp(name, "ggml_backend_set_n_threads") == 0) return set_threads_and_remember;
  return function_of(registry, name);
}

// Makes the backends of ggml's CPU registry keep their threads. Returns 1, or 0 when this release of ggml is not the expected one.
// Call it from one thread, before any computation.
int coppice_keep_threads(Registry *registry) {
  if (registry->version != INTERFACE) return 0;
  if (registry->function == function_or_ours) return 1;
  if (function_of != NULL) return 0; // another build of ggml in the same process
  new_pool = registry->function(registry, "ggml_threadpool_new");
  free_pool = registry->function(registry, "ggml_threadpool_free");
  set_pool = registry->function(registry, "ggml_backend_cpu_set_threadpool");
  set_threads = registry->function(registry, "ggml_backend_set_n_threads");
  if (new_pool == NULL || free_pool == NULL || set_pool == NULL || set_threads == NULL) return 0;
  function_of = registry->function;
  registry->function = function_or_ours;
  return 1;
}
