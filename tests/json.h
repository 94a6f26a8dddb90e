/* json.h - the tools' JSON reader serves the tests, too. */
#include "../tools/json.h"
