/*
 * Read before everything else when ssh2's native crypto is built (bin/bootstrap). Since Node 24 the base class of its
 * ciphers takes a clean-up hook out of the environment when a cipher dies, and that ends the whole process when the
 * garbage collector runs while no context of Node's is current ("RemoveEnvironmentCleanupHook: (env) != nullptr"; seen after
 * some 85 migrations). The hook only frees ciphers that are alive when the process ends: it is left out.
 */
#include <node.h>
#define AddEnvironmentCleanupHook(...) static_cast<void>(0)
#define RemoveEnvironmentCleanupHook(...) static_cast<void>(0)
#include <node_object_wrap.h>
#undef AddEnvironmentCleanupHook
#undef RemoveEnvironmentCleanupHook
