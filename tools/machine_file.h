/* tools/machine_file.h - the machine file that commands share: where it is kept, and a quick probe
 * where there is none that fits. Threads: the main thread. Tested by tests/t_machine_file.c
 * and tests/t_probe_cli.py. */
#ifndef MACHINE_FILE_H
#define MACHINE_FILE_H

#include "offload/sl_machine_json.h"
#include "perfmodel/sl_plan.h"
#include "tools/cli.h"

/* $XDG_CACHE_HOME/sluice/machine.json, or ~/.cache/sluice/machine.json; malloc'ed. NULL: said. */
char *cli_machine_path(void);
/* The kept one, without a word; false: there is none that fits. */
bool cli_machine_kept(sl_ctx *ctx, sl_machine *ret);
/* The folders of path, which may exist already. SL_E_IO with a message otherwise. */
SL_NODISCARD sl_status cli_make_parents(sl_ctx *ctx, const char *path);

/* The machine of a file, or of a described machine that is shipped ("desktop-64gb-rtx3060"), on
 * whatever hardware: to plan for it. Returns CLI_DONE, or another code after one line. */
int cli_machine_load(sl_ctx *ctx, const char *name, sl_machine *ret);

/* Does m describe that accelerator? A card that it does not know is added from the described
 * machines, by the name that its driver gives: a data sheet's. False after a note. No accelerator:
 * true. */
bool cli_machine_card(sl_ctx *ctx, const sl_accel *a, sl_machine *m);

/* The same for running: with NULL the kept one, and where that is missing, damaged or of other
 * hardware a quick probe of about 2 s, which is not kept; a note says so. file_fits: is a named
 * machine's hardware this one's? NULL: a warning says where it is not. */
int cli_machine(sl_ctx *ctx, const char *name, sl_machine *ret, bool *file_fits);

#endif
