/* What csrc/ needs of threads where there is one. */
#define PTHREAD_ONCE_INIT 0
typedef int pthread_once_t;
int pthread_once(pthread_once_t *once, void (*function)(void));
