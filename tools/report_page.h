/* tools/report_page.h - the report's page around its data: made at build time by
 * tools/report/embed.py from tools/report/ and the chart library, where that was found. */
#ifndef REPORT_PAGE_H
#define REPORT_PAGE_H

#include <stddef.h>

extern const unsigned char report_head[], report_tail[];
extern const size_t report_head_n, report_tail_n;

#endif
