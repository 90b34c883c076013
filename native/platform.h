// What systems do differently: a lock, aligned memory, and a value of each thread with what to do when the thread ends.
#pragma once
#include <stdlib.h>

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#include <malloc.h>

typedef SRWLOCK Lock;
#define UNLOCKED SRWLOCK_INIT
static inline void lock(Lock *l) { AcquireSRWLockExclusive(l); }
static inline void unlock(Lock *l) { ReleaseSRWLockExclusive(l); }

static inline void *allocate_aligned(size_t bytes, size_t alignment) { return _aligned_malloc(bytes, alignment); }
static inline void free_aligned(void *memory) { _aligned_free(memory); }

typedef DWORD ThreadKey;
#define AT_THREAD_END WINAPI
static inline ThreadKey create_thread_key(void(WINAPI *at_end)(void *)) { return FlsAlloc(at_end); }
static inline void set_thread_value(ThreadKey key, void *value) { FlsSetValue(key, value); }

// Threads may end after the process has closed its libraries, and then call code of ours.
static inline void never_unload(void *address) {
  HMODULE module;
  GetModuleHandleExW(GET_MODULE_HANDLE_EX_FLAG_PIN | GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS, (LPCWSTR)address, &module);
}
#else
#include <pthread.h>

typedef pthread_mutex_t Lock;
#define UNLOCKED PTHREAD_MUTEX_INITIALIZER
static inline void lock(Lock *l) { pthread_mutex_lock(l); }
static inline void unlock(Lock *l) { pthread_mutex_unlock(l); }

static inline void *allocate_aligned(size_t bytes, size_t alignment) {
  void *memory = NULL;
  return posix_memalign(&memory, alignment, bytes) == 0 ? memory : NULL;
}
static inline void free_aligned(void *memory) { free(memory); }

typedef pthread_key_t ThreadKey;
#define AT_THREAD_END
static inline ThreadKey create_thread_key(void (*at_end)(void *)) {
  ThreadKey key;
  if (pthread_key_create(&key, at_end) != 0) abort();
  return key;
}
static inline void set_thread_value(ThreadKey key, void *value) { pthread_setspecific(key, value); }

static inline void never_unload(void *address) { (void)address; } // the linker's -z nodelete; macOS never does
#endif
