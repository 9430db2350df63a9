/* perfmodel/plan_split.h - the part of a plan that an accelerator takes. Private to perfmodel/. */
#ifndef PLAN_SPLIT_H
#define PLAN_SPLIT_H

#include "perfmodel/sl_plan.h"

/* Fills in plan->split and the mode; all else of the plan is there. Errors: SL_E_NOMEM,
 * SL_E_UNSUPPORTED, as sl_plan_make. */
sl_status plan_split(sl_ctx *ctx, const sl_shape *shape, const sl_plan_params *p, sl_plan *plan);

#endif
